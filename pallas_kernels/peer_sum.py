"""Adds partial products of several GPUs up in the kernel that norms the sum, for Hopper GPUs.

Each GPU sends its part of a row to all others, a row a thread block, and adds up what has come to
its own memory: an all-reduce in one shot.
"""

import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from . import global_memory
from .peer_memory import THREADS, WORD, Mailbox, lanes, row_layout, swapped
from .row_norm import normed_row


def fits(width: int, dtype: DTypeLike) -> bool:
    """Whether rows of `width` elements can be added up here: whole words for every thread."""
    dtype = jnp.dtype(dtype)
    return dtype.itemsize == 2 and width * dtype.itemsize % (THREADS * WORD) == 0


def add_rms_norm(
    x: Float[Array, "T E"],
    y: Float[Array, "T E"],
    weight: Float[Array, " E"],
    mailbox: Mailbox,
    eps: float,
) -> tuple[Float[Array, "T E"], Float[Array, "T E"]]:
    """`block_reference.add_rms_norm` of x and the sum of all GPUs' y, the same bits on each.

    For up to M rows that `fits`, all of one type, within a `shard_map` over all GPUs that the
    mailbox knows, which must all call it, in the same order. Needs jax 0.11.2.
    """
    from jax.experimental.pallas import mosaic_gpu as plgpu  # slow to import, and new in jax 0.11

    rows, width = x.shape
    devices = mailbox.inbox.shape[1]
    layout = row_layout(plgpu, width, x.dtype.itemsize)
    load = functools.partial(global_memory.load, plgpu, layout=layout)

    def body(
        x_ref: jax.Ref,
        y_ref: jax.Ref,
        weight_ref: jax.Ref,
        box: Mailbox,
        total_ref: jax.Ref,
        normed_ref: jax.Ref,
    ) -> None:
        row = jax.lax.axis_index("row")
        part, stream = load(y_ref.at[row]), load(x_ref.at[row])
        scale = load(weight_ref).astype(jnp.float32)  # asked for early, needed late
        place = swapped(plgpu, box, row, part, layout)
        me = box.peers[0, 0]
        total = jnp.zeros((width,), jnp.float32)
        for sender in range(devices):  # in the same order everywhere
            theirs = load(box.inbox.at[place, sender, row])
            total += jnp.where(sender == me, part, theirs).astype(jnp.float32)
        total = total.astype(x.dtype).astype(jnp.float32)
        total = (stream.astype(jnp.float32) + total).astype(x.dtype)
        global_memory.store(plgpu, total_ref.at[row], total)
        global_memory.store(plgpu, normed_ref.at[row], normed_row(total, scale, eps))

    run = plgpu.kernel(
        body,
        out_type=[jax.ShapeDtypeStruct(x.shape, x.dtype)] * 2,
        grid=(rows,),
        grid_names=("row",),
        compiler_params=lanes(plgpu),
        kernel_name="peer_add_rms_norm",
    )
    total, normed = run(x, y, weight, mailbox)
    return total, normed
