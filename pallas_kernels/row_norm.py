"""Adds to the residual stream and norms the sum, as a Mosaic kernel for Hopper GPUs.

`block_reference.add_rms_norm` defines it. One thread block takes one row and touches every element
once. XLA makes three kernels of it for one row, each as long as a launch.

An update brings many rows of B to each row. More threads take part then, so that enough of
them are on their way at once: several warpgroups share the columns.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from . import global_memory
from .block_reference import Update
from .rope_write import weighted_sums

_WARPS, _LANES = 4, 32
_THREADS = _WARPS * _LANES
"""Of a warpgroup."""
_GROUPS = 8
"""Warpgroups of a thread block, at most."""
_VECTOR = 8
"""Elements of 16 bits that one instruction loads, at most."""
_AHEAD = 49152
"""Elements of B that a block waits for at once. They take three eighths of an SM's registers."""


def fits(width: int, dtype: DTypeLike) -> bool:
    """Whether rows of `width` elements can be normed here: whole words for every thread."""
    return width * jnp.dtype(dtype).itemsize % (_THREADS * 4) == 0


def add_rms_norm(
    x: Float[Array, "T E"],
    y: Float[Array, "T E"],
    weight: Float[Array, " E"],
    eps: float,
    update: Update | None = None,
    *,
    interpret: bool = False,
) -> tuple[Float[Array, "T E"], Float[Array, "T E"]]:
    """`block_reference.add_rms_norm` for widths that `fits`, all of one type of 16 bits.

    Needs jax 0.11.2.

    Args:
        update: of the type of x. Of B no more is read than the rows' own slots.
        interpret: run on any device, slowly.
    """
    from jax.experimental.pallas import mosaic_gpu as plgpu  # slow to import, and new in jax 0.11

    if update is not None:
        return _add_rms_norm_of_updated(x, y, weight, eps, update, interpret)
    rows = x.shape[0]

    def body(
        x_ref: jax.Ref, y_ref: jax.Ref, weight_ref: jax.Ref, total_ref: jax.Ref, normed_ref: jax.Ref
    ) -> None:
        row = jax.lax.axis_index("row")
        load = functools.partial(global_memory.load, plgpu)
        scale = load(weight_ref).astype(jnp.float32)  # asked for early, needed late
        stream, added = (load(ref.at[row]).astype(jnp.float32) for ref in (x_ref, y_ref))
        total = (stream + added).astype(x.dtype)
        global_memory.store(plgpu, total_ref.at[row], total)
        global_memory.store(plgpu, normed_ref.at[row], normed_row(total, scale, eps))

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


def normed_row(total: Float[Array, " E"], scale: Float[Array, " E"], eps: float) -> Array:
    """The norm of a row that one warpgroup has, in a kernel; `scale` in float32."""
    exact = total.astype(jnp.float32)
    mean = jnp.sum(jnp.square(exact)) / total.size
    normed = (exact * jax.lax.rsqrt(mean + eps)).astype(total.dtype).astype(jnp.float32)
    return (normed * scale).astype(total.dtype)


def _add_rms_norm_of_updated(
    x: Float[Array, "T E"],
    y: Float[Array, "T E"],
    weight: Float[Array, " E"],
    eps: float,
    update: Update,
    interpret: bool,
) -> tuple[Float[Array, "T E"], Float[Array, "T E"]]:
    """`add_rms_norm` where several warpgroups share a row."""
    from jax.experimental.pallas import mosaic_gpu as plgpu  # as above

    rows, width = x.shape
    groups, vector = _share(width)
    parts = groups, _WARPS, width // (groups * _WARPS)
    run = plgpu.kernel(
        lambda *refs: _Kernel(plgpu, vector, eps, *refs).run(),
        out_type=[jax.ShapeDtypeStruct((rows, *parts), x.dtype)] * 2,
        scratch_types=[
            plgpu.SMEM(parts[:2], jnp.float32),
            plgpu.Barrier(num_arrivals=groups),
        ],
        grid=(rows,),
        grid_names=("row",),
        num_threads=groups,
        thread_name="group",
        interpret=plgpu.InterpretGPUParams(detect_races=True) if interpret else None,
        kernel_name="add_rms_norm",
    )
    b = update.b.reshape(*update.b.shape[:2], *parts)
    update = Update(update.h[:, 0], b, update.slots.astype(jnp.int32))
    x, y = (a.reshape(rows, *parts) for a in (x, y))
    total, normed = run(x, y, weight.reshape(parts), update)
    return total.reshape(rows, width), normed.reshape(rows, width)


def _share(width: int) -> tuple[int, int]:
    """Warpgroups that share the columns, and the elements of a load: as many as possible."""
    vector = max(n for n in (1, 2, 4, _VECTOR) if width % (_THREADS * n) == 0)
    words = width // (_THREADS * vector)
    return max(n for n in range(1, _GROUPS + 1) if words % n == 0), vector


class _Kernel(NamedTuple):
    gpu: Any
    """The module of Mosaic."""
    vector: int
    """Elements of a load."""
    eps: float
    x: jax.Ref
    y: jax.Ref
    weight: jax.Ref
    update: Any
    """References in place of its arrays; h is [T, S, R]."""
    total: jax.Ref
    normed: jax.Ref
    squares: jax.Ref
    """The sum of the squares of each warp."""
    summed: jax.Ref
    """Tells that all these sums are there."""

    def run(self) -> None:
        row, group = jax.lax.axis_index("row"), jax.lax.axis_index("group")
        adapter = self.update.slots[row]
        terms = [self.load(ref.at[row, group]) for ref in (self.x, self.y)]
        scale = self.load(self.weight.at[group])  # asked for early, needed late
        added = self.added(row, group, adapter, terms)  # asks for B before it waits for x and y
        x, y = (term.astype(jnp.float32) for term in terms)
        total = (x + y + added).astype(self.x.dtype)
        global_memory.store(self.gpu, self.total.at[row, group], total)
        exact = total.astype(jnp.float32)
        mean = self.sum_of_row(group, jnp.square(exact)) / self.weight.size
        normed = (exact * jax.lax.rsqrt(mean + self.eps)).astype(total.dtype).astype(jnp.float32)
        normed = (normed * scale.astype(jnp.float32)).astype(total.dtype)
        global_memory.store(self.gpu, self.normed.at[row, group], normed)

    def added(self, row: Array, group: Array, adapter: Array, like: list[Array]) -> Array:
        h, b = self.update.h, self.update.b
        slots, rank = b.shape[:2]

        def ask(rows: Any) -> Any:
            weights = h.at[row, adapter, rows]
            block = b.at[adapter, rows, group]
            return lambda n: [(weights[n], self.load(block.at[n]))]

        ahead = max(_AHEAD // self.weight.size, 1)
        [total] = weighted_sums(adapter < slots, like[:1], rank, ahead, ask)
        return total

    def sum_of_row(self, group: Array, x: Array) -> Array:
        """Each warp sums by itself: the memory that a warpgroup would use is that of all."""
        self.squares[group] = jnp.sum(x, 1)
        self.gpu.barrier_arrive(self.summed)
        self.gpu.barrier_wait(self.summed)
        groups, warps = self.squares.shape
        first, *rest = (self.squares[n, m] for n in range(groups) for m in range(warps))
        return sum(rest, first)

    def load(self, ref: Any) -> Array:
        return global_memory.load(self.gpu, ref, _layout(self.gpu, self.vector))


def _layout(gpu: Any, vector: int) -> Any:
    """Deals the columns of a warpgroup out, [_WARPS, C]: to each warp a row of them."""
    from jax.experimental.mosaic.gpu import fragmented_array as mosaic

    tile = _LANES * vector
    layout = mosaic.TiledLayout(
        mosaic.Tiling(((_WARPS, tile), (1, tile), (vector,))),
        (-5,),
        (-2,),
        vector_dim=-1,
        _check_canonical=False,
    ).canonicalize()
    return gpu.Layout.TILED(layout.tiling, layout.warp_dims, layout.lane_dims, layout.vector_dim)
