"""Gathers what several Hopper GPUs have of a few long rows, such as logits, on all of them.

A thread block takes a piece of its GPU's part of a row, sends it to all others, and writes it and
theirs to the whole row.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from . import global_memory
from .peer_memory import THREADS, WORD, Mailbox, lanes, row_layout, swapped


def fits(rows: int, part: int, mailbox: Mailbox) -> bool:
    """Whether rows of float32, of which each GPU has a part, go through a mailbox at once."""
    _, _, slots, _ = mailbox.inbox.shape
    piece = _piece(mailbox)
    whole_words = piece % THREADS == 0 and part % WORD == 0
    return whole_words and part >= piece and rows * pl.cdiv(part, piece) <= slots


def gathered(y: Float[Array, "R part"], mailbox: Mailbox) -> Float[Array, "R whole"]:
    """The GPUs' parts of each row side by side, for float32 rows that `fits`.

    Within a `shard_map` over all GPUs that the mailbox knows, which must all call it, in the same
    order. Needs jax 0.11.2.
    """
    from jax.experimental.pallas import mosaic_gpu as plgpu  # slow to import, and new in jax 0.11

    rows, part = y.shape
    _, devices, _, width = mailbox.inbox.shape
    piece = _piece(mailbox)
    pieces = pl.cdiv(part, piece)
    layout = row_layout(plgpu, piece, WORD)
    stored = row_layout(plgpu, width, WORD // 2)

    def body(y_ref: jax.Ref, box: Mailbox, whole_ref: jax.Ref) -> None:
        block = jax.lax.axis_index("block")
        row, number = jax.lax.div(block, jnp.int32(pieces)), jax.lax.rem(block, jnp.int32(pieces))
        first = jnp.minimum(number * piece, part - piece)  # the last one laps over the one before
        own = global_memory.load(plgpu, y_ref.at[row, pl.ds(first, piece)], layout)
        place = swapped(plgpu, box, block, own, layout)
        me = box.peers[0, 0]
        for sender in range(devices):
            theirs = global_memory.load(plgpu, box.inbox.at[place, sender, block], stored)
            theirs = jnp.where(sender == me, own, _floats(plgpu, stored, layout, piece)(theirs))
            columns = pl.ds(sender * part + first, piece)
            global_memory.store(plgpu, whole_ref.at[row, columns], theirs)

    run = plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct((rows, devices * part), y.dtype),
        grid=(rows * pieces,),
        grid_names=("block",),
        compiler_params=lanes(plgpu),
        kernel_name="peer_gather",
    )
    return run(y, mailbox)


def _piece(mailbox: Mailbox) -> int:
    """Elements of float32 that fill a slot."""
    return mailbox.inbox.shape[-1] * mailbox.inbox.dtype.itemsize // WORD


def _floats(gpu: Any, stored: Any, layout: Any, size: int) -> Any:
    """(row) -> the float32 elements whose bytes a row of 16-bit elements has."""
    from jax.experimental.mosaic import gpu as mosaic
    from jaxlib.mlir import ir
    from jaxlib.mlir.dialects import vector

    floats = gpu.ShapeDtypeStruct((size,), jnp.float32, layout=layout)

    @gpu.inline_mgpu(arg_types=(stored,), return_type=floats)
    def cast(_: Any, row: Any) -> Any:
        found = row.registers.copy()
        for at, register in enumerate(row.registers.flat):
            kind = ir.VectorType.get((row.layout.vec_size // 2,), ir.F32Type.get())
            found.flat[at] = vector.bitcast(kind, register)
        to = mosaic.WGStridedFragLayout((size,), row.layout.vec_size // 2)
        return mosaic.FragmentedArray(_registers=found, _layout=to, _is_signed=None)

    return cast
