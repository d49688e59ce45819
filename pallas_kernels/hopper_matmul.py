"""A product of few rows with the transpose of a large matrix, as a Mosaic kernel for Hopper GPUs.

`reference.matmul` and `reference.gated_matmul` define it. It serves decode steps, where nothing but
the time counts that W takes to come from memory. So every SM has one tile of W and streams it
through a deep ring in shared memory, and tiles are chosen such that one wave of them nearly fills
the GPU. All rows of x take part in each product: they are the 64 (or 128) rows of a wgmma, and a
tile of W is its columns.

A thread block must read all of x that meets its tile, and L2 must deliver that beside W. Blocks
therefore work in clusters, in one of two ways: they either *split* a wide tile along E and add up
their sums through each other's shared memory at the end, or *share* x, each reading a part of it
and sending that to all. Letters as everywhere; N columns of a wgmma.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

_SMS = 132
_SHARED_BYTES = 225 * 1024
"""For arrays; barriers lie beside them."""
_ROWS = 64
"""Of one wgmma, and so of a warpgroup."""
_STAGES = 8
_CLUSTERS = (1, False), (2, False), (2, True), (4, True)
_MEMORY, _CACHE = 4.2e6, 7e6
"""Bytes that come from memory and from L2 in a microsecond."""
_LATENCY, _WAVE, _REDUCE = 1.5, 2.0, 1.0
"""Microseconds: of a copy, what a wave of tiles loses, and what the sums of a cluster take."""


class Tuning(NamedTuple):
    """What decides about speed, not about meaning, but for the order of sums."""

    columns: int
    """Rows of W in a tile: N."""
    cluster: int = 1
    """Thread blocks of a cluster: 1, 2, 4 or 8."""
    split: bool = False
    """Whether the blocks of a cluster split E; otherwise they share x."""
    depth: int = 64
    """Elements of E in a stage: a multiple of 64, of rows of 128 bytes."""
    stages: int | None = None
    """Of the ring; None is as many as fit, up to 8."""
    rotate: bool = False
    """Whether tiles begin at different places of E, not all at the same ones of x."""
    early: bool = False
    """Start while the kernel before still runs (PDL). It must not be the one that writes W."""


class _Plan(NamedTuple):
    """What is fixed when the kernel is traced."""

    tokens: int
    """T, a multiple of 8: copies can stop at no other row."""
    width: int
    """E."""
    parts: int
    """Rows of W for each column of the result: 2 with a gate."""
    activation: str | None
    tuning: Tuning

    @property
    def groups(self) -> int:
        """Warpgroups that multiply."""
        return pl.cdiv(self.tokens, _ROWS)

    @property
    def rows(self) -> int:
        return self.groups * _ROWS

    @property
    def splits(self) -> int:
        return self.tuning.cluster if self.tuning.split else 1

    @property
    def shares(self) -> int:
        return self.tuning.cluster // self.splits

    @property
    def tile(self) -> int:
        """Columns of the result that a tile makes."""
        return self.tuning.columns // self.parts

    @property
    def slice(self) -> int:
        """Columns of the result that a block writes."""
        return self.tile // self.splits

    @property
    def steps(self) -> int:
        return self.width // (self.tuning.depth * self.splits)

    def stages(self, out_bytes: int) -> int:
        n, depth = self.tuning.columns, self.tuning.depth
        room = _SHARED_BYTES - self.rows * (self.slice * out_bytes + (self.splits > 1) * 4 * n)
        return min(self.tuning.stages or _STAGES, room // (2 * depth * (self.rows + n)), self.steps)

    def fits(self, out: int) -> bool:
        return (
            self.tile % (8 * self.splits) == 0
            and out % (self.tile * self.shares) == 0
            and self.width % (self.tuning.depth * self.splits) == 0
            and self.stages(4) > 1
        )

    def cost(self, out: int) -> float:
        """A guess at the time, in microseconds."""
        blocks = out // self.slice
        waves = pl.cdiv(blocks, _SMS)
        w = 2 * out * self.parts * self.width
        x = 2 * self.tokens * self.width * (blocks // self.tuning.cluster)
        flying = 2 * self.tuning.depth * self.tuning.columns * (self.stages(4) - 1) * _SMS
        full = max(w / _MEMORY, (w + x) / _CACHE, w * _LATENCY / flying)
        return full * waves * _SMS / blocks + waves * _WAVE + (self.splits > 1) * _REDUCE


@functools.cache
def _best(tokens: int, out: int, width: int, parts: int) -> _Plan | None:
    """The plan with the lowest cost, if there is any that fits."""
    every = [Tuning(n, *way) for n in range(16, 257, 8) for way in _CLUSTERS]
    plans = [_Plan(pl.cdiv(tokens, 8) * 8, width, parts, None, tuning) for tuning in every]
    return min((p for p in plans if p.fits(out)), key=lambda p: p.cost(out), default=None)


def fits(tokens: int, out: int, width: int, dtype: Any, *, gated: bool = False) -> bool:
    """Whether a product of [tokens, width] and [out, width] can run here, and pays.

    For `gated_matmul` out is F, the columns of its result.
    """
    if not 9 <= tokens <= 2 * _ROWS or jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        return False
    plan = _best(tokens, out, width, 1 + gated)
    ideal = 2 * out * (1 + gated) * width / _MEMORY
    return plan is not None and plan.cost(out) < 1.5 * ideal + _WAVE


def matmul(
    x: Float[Array, "T E"],
    w: Float[Array, "O E"],
    *,
    residual: Float[Array, "T O"] | None = None,
    out_dtype: Any = None,
    tuning: Tuning | None = None,
    interpret: bool = False,
) -> Float[Array, "T O"]:
    """`reference.matmul` for shapes that `fits` takes. Needs jax 0.11.2.

    Args:
        interpret: run on any device, slowly, without clusters.
    """
    out_dtype = jnp.dtype(out_dtype or x.dtype)
    return _run(x, w[None], residual, None, out_dtype, tuning, interpret)


def gated_matmul(
    x: Float[Array, "T E"],
    w: Float[Array, "2 F E"],
    *,
    activation: str,
    tuning: Tuning | None = None,
    interpret: bool = False,
) -> Float[Array, "T F"]:
    """`reference.gated_matmul`; otherwise as `matmul`."""
    return _run(x, w, None, activation, x.dtype, tuning, interpret)


def _run(
    x: Float[Array, "T E"],
    w: Float[Array, "N O E"],
    residual: Float[Array, "T O"] | None,
    activation: str | None,
    out_dtype: Any,
    tuning: Tuning | None,
    interpret: bool,
) -> Float[Array, "T O"]:
    from jax.experimental.pallas import mosaic_gpu as plgpu  # slow to import

    (tokens, width), (parts, out, _) = x.shape, w.shape
    best = None if tuning else _best(tokens, out, width, parts)
    tuning = tuning or (best and best.tuning)
    assert tuning is not None, "ask fits first"
    if interpret:
        tuning = tuning._replace(cluster=1, early=False)
    plan = _Plan(pl.cdiv(tokens, 8) * 8, width, parts, activation, tuning)
    rows = [x] if residual is None else [x, residual.astype(out_dtype)]
    if plan.tokens > tokens:
        rows = [jnp.pad(a, [(0, plan.tokens - tokens), (0, 0)]) for a in rows]

    def kernel(w: jax.Ref, x: jax.Ref, *refs: Any) -> None:
        *residual, out, scratch = refs
        _ThreadBlock(plgpu, plan, w, x, residual, out, scratch).run()

    run = plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((plan.tokens, out), out_dtype),
        scratch_types=[_scratch(plgpu, plan, x.dtype, out_dtype)],
        compiler_params=plgpu.CompilerParams(approx_math=True),
        grid=(out // (plan.slice * tuning.cluster),),
        grid_names=("cluster",),
        cluster=(tuning.cluster,),
        cluster_names=("block",),
        num_threads=plan.groups + 1,
        thread_name="warpgroup",
        interpret=plgpu.InterpretGPUParams(detect_races=True) if interpret else None,
        kernel_name="matmul",
    )
    return run(w, *rows)[:tokens]


class _Scratch(NamedTuple):
    x: Any
    w: Any
    full: Any
    free: Any
    out: Any
    """First the residual, then the result."""
    residual: Any
    sums: Any
    """What every block of a cluster computed of the columns that this one writes."""
    summed: Any


def _scratch(plgpu: Any, plan: _Plan, dtype: Any, out_dtype: Any) -> _Scratch:
    def tiled(shape: tuple[int, ...], dtype: Any) -> Any:
        size = jnp.dtype(dtype).itemsize
        minor = math.gcd(shape[-1], 128 // size)
        transforms = [plgpu.TilingTransform((8, minor))]
        if minor * size > 16:
            transforms.append(plgpu.SwizzleTransform(minor * size))
        return plgpu.SMEM(shape, dtype, transforms=transforms)

    n, (columns, _, _, depth, *_) = plan.stages(out_dtype.itemsize), plan.tuning
    free = plgpu.Barrier(num_arrivals=plan.groups, num_barriers=n)
    if plan.shares > 1:
        free = plgpu.ClusterBarrier(
            collective_axes=("block",), num_arrivals=plan.groups, num_barriers=n
        )
    return _Scratch(
        x=tiled((n, plan.rows, depth), dtype),
        w=tiled((n, columns, depth), dtype),
        full=plgpu.Barrier(num_arrivals=1 + plan.parts, num_barriers=n),
        free=free,
        out=tiled((plan.rows, plan.slice), out_dtype),
        residual=plgpu.Barrier(),
        sums=tiled((plan.splits, plan.parts, plan.rows, plan.slice), jnp.float32)
        if plan.splits > 1
        else None,
        summed=plgpu.Barrier(num_arrivals=plan.splits * plan.parts * plan.groups),
    )


class _ThreadBlock(NamedTuple):
    gpu: Any
    """The module of Mosaic."""
    plan: _Plan
    w: jax.Ref
    x: jax.Ref
    residual: list[jax.Ref]
    out: jax.Ref
    scratch: _Scratch

    def run(self) -> None:
        def copy(warp: Array) -> None:
            pl.when(warp == 0)(self.load)

        warpgroup, groups = lax.axis_index("warpgroup"), self.plan.groups
        pl.when(warpgroup < groups)(lambda: self.multiply(pl.ds(warpgroup * _ROWS, _ROWS)))
        # one warp, since every thread of a copying group signals each copy
        pl.when(warpgroup == groups)(lambda: self.gpu.warp_map(copy))

    def load(self) -> None:
        """Fills the ring. Of what other kernels wrote, nothing is touched before W is asked."""
        plan, scratch = self.plan, self.scratch
        stages = scratch.full.shape[0]
        for step in range(stages):
            self.load_w(jnp.int32(step), step)
        if plan.tuning.early:
            self.gpu.griddepcontrol_wait()
        for step in range(stages):
            self.load_x(jnp.int32(step), step)
        for ref in self.residual:
            source = ref.at[self.rows, self.columns]
            self.gpu.copy_gmem_to_smem(source, scratch.out, scratch.residual)

        def load(step: Array, _: None) -> None:
            slot = lax.rem(step, jnp.int32(stages))
            self.gpu.barrier_wait(scratch.free.at[slot])
            self.load_w(step, slot)
            self.load_x(step, slot)

        lax.fori_loop(stages, plan.steps, load, None)
        if plan.tuning.early:
            self.gpu.griddepcontrol_launch_dependents()
        for slot in range(stages):  # nobody may signal a block that is gone
            self.gpu.barrier_wait(scratch.free.at[(plan.steps + slot) % stages])

    def load_w(self, step: Array, slot: Any) -> None:
        size, scratch = self.plan.tile, self.scratch
        for part in range(self.plan.parts):
            source = self.w.at[part, pl.ds(self.tile * size, size), self.depth(step)]
            target = scratch.w.at[slot, pl.ds(part * size, size)]
            self.gpu.copy_gmem_to_smem(source, target, scratch.full.at[slot])

    def load_x(self, step: Array, slot: Any) -> None:
        self.gpu.copy_gmem_to_smem(
            self.x.at[self.rows, self.depth(step)],
            self.scratch.x.at[slot],
            self.scratch.full.at[slot],
            collective_axes="block" if self.plan.shares > 1 else None,
        )

    def depth(self, step: Array) -> Any:
        """The elements of E of a step."""
        plan = self.plan
        if plan.tuning.rotate:
            step = lax.rem(step + lax.axis_index("cluster"), jnp.int32(plan.steps))
        if plan.splits > 1:
            step += lax.axis_index("block") * plan.steps
        return pl.ds(step * plan.tuning.depth, plan.tuning.depth)

    @property
    def rows(self) -> Any:
        """All rows, and more: copies fill with zeros what is not there."""
        zero = jnp.minimum(lax.axis_index("cluster"), 0)  # tracing must not know it
        return pl.ds(zero * _ROWS, self.plan.rows)

    @property
    def tile(self) -> Array:
        block = lax.axis_index("block") if self.plan.shares > 1 else 0
        return lax.axis_index("cluster") * self.plan.shares + block

    @property
    def columns(self) -> Any:
        """Those of the result that this block writes."""
        first = self.tile * self.plan.tile
        if self.plan.splits > 1:
            first += lax.axis_index("block") * self.plan.slice
        return pl.ds(first, self.plan.slice)

    def multiply(self, rows: Any) -> None:
        plan, scratch = self.plan, self.scratch

        def products(acc: Any) -> Array:
            def step(i: Array, _: None) -> None:
                slot = lax.rem(i, jnp.int32(scratch.full.shape[0]))
                self.gpu.barrier_wait(scratch.full.at[slot])
                self.gpu.wgmma(acc, scratch.x.at[slot, rows], scratch.w.at[slot].transpose((1, 0)))
                self.gpu.wgmma_wait(0)
                if plan.shares > 1:  # one warp signals this barrier for all
                    self.gpu.commit_smem()
                self.gpu.barrier_arrive(scratch.free.at[slot])

            lax.fori_loop(0, plan.steps, step, None)
            return acc[...]

        acc = pl.run_scoped(products, self.gpu.ACC((_ROWS, plan.tuning.columns), jnp.float32))
        parts = [acc[:, n * plan.tile : (n + 1) * plan.tile] for n in range(plan.parts)]
        if plan.splits > 1:
            parts = self.reduced(parts, rows)
        y = parts[0]
        if plan.activation is not None:
            y = _activated(plan.activation, y) * parts[1]
        out = scratch.out.at[rows]
        if self.residual:
            self.gpu.barrier_wait(scratch.residual)
            y += out[...].astype(jnp.float32)
        out[...] = y.astype(out.dtype)
        self.gpu.commit_smem()
        self.gpu.copy_smem_to_gmem(out, self.out.at[rows, self.columns])
        self.gpu.wait_smem_to_gmem(0, wait_read_only=True)

    def reduced(self, parts: list[Array], rows: Any) -> list[Array]:
        """Sends each block of the cluster what it has to write, and adds up what comes."""
        plan, sums = self.plan, self.scratch.sums
        for block in range(plan.splits):
            for n, part in enumerate(parts):
                self.gpu.async_store_smem(
                    part[:, block * plan.slice : (block + 1) * plan.slice],
                    sums.at[lax.axis_index("block"), n, rows],
                    self.scratch.summed,
                    cluster_idx=jnp.int32(block),
                    cluster_dim="block",
                )
        self.gpu.barrier_wait(self.scratch.summed)
        every = [[sums.at[i, n, rows][...] for i in range(plan.splits)] for n in range(plan.parts)]
        return [functools.reduce(jnp.add, terms) for terms in every]


def _activated(activation: str, x: Array) -> Array:
    if activation == "silu":
        return x / (1 + jnp.exp(-x))
    assert activation == "gelu_tanh", activation
    return 0.5 * x * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
