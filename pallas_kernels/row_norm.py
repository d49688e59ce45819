"""Adds to the residual stream and norms the sum, as a Mosaic kernel for Hopper GPUs.

`block_reference.add_rms_norm` defines it. One thread block takes one row and touches every element
once. XLA makes three kernels of it for one row, each as long as a launch.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

_THREADS = 128


def fits(width: int, dtype: DTypeLike) -> bool:
    """Whether rows of `width` elements can be normed here: whole words for every thread."""
    return width * jnp.dtype(dtype).itemsize % (_THREADS * 4) == 0


def add_rms_norm(
    x: Float[Array, "T E"],
    y: Float[Array, "T E"],
    weight: Float[Array, " E"],
    eps: float,
    *,
    interpret: bool = False,
) -> tuple[Float[Array, "T E"], Float[Array, "T E"]]:
    """`block_reference.add_rms_norm` for widths that `fits`, all of one type of 16 bits.

    Needs jax 0.11.2.

    Args:
        interpret: run on any device, slowly.
    """
    from jax.experimental.pallas import mosaic_gpu as plgpu  # slow to import, and new in jax 0.11

    rows, width = x.shape

    def body(
        x_ref: jax.Ref, y_ref: jax.Ref, weight_ref: jax.Ref, total_ref: jax.Ref, normed_ref: jax.Ref
    ) -> None:
        row = jax.lax.axis_index("row")
        scale = weight_ref[...].astype(jnp.float32)  # asked for early, needed late
        total = x_ref[row].astype(jnp.float32) + y_ref[row].astype(jnp.float32)
        total = total.astype(x.dtype)
        total_ref[row] = total
        exact = total.astype(jnp.float32)
        mean = jnp.sum(jnp.square(exact)) / width
        normed = (exact * jax.lax.rsqrt(mean + eps)).astype(x.dtype).astype(jnp.float32)
        normed_ref[row] = (normed * scale).astype(x.dtype)

    run = plgpu.kernel(
        body,
        out_type=[jax.ShapeDtypeStruct(x.shape, x.dtype)] * 2,
        grid=(rows,),
        grid_names=("row",),
        interpret=plgpu.InterpretGPUParams(detect_races=True) if interpret else None,
        kernel_name="add_rms_norm",
    )
    total, normed = run(x, y, weight)
    return total, normed
