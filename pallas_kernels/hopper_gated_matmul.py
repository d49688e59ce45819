"""The gated product, as a Mosaic kernel for Hopper GPUs.

`block_reference.gated_matmul` defines it. A tile takes 64 tokens a warpgroup and as many columns of
the gate as of the other half, so that the two meet in the registers of one thread and only their
product is written. A thread block lives as long as the kernel: one of its warps streams x and W
through a ring in shared memory, across the borders of tiles, and the other warpgroups multiply.

Of many tokens, L2 could not deliver all that the tiles of 132 thread blocks read. Two blocks
therefore make a cluster and share what both need: each reads half of it and sends that to both.
For few tokens nothing counts but the time that W takes to come from memory, so tiles are chosen
such that whole waves of them fill the GPU. Letters as in `block_reference`.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

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
_LINE = 64
"""Elements of E in 128 bytes, which a copy lays out as one."""
_STAGES = 4
_FEWEST = 9
"""Tokens. Below it XLA's own kernels are as fast."""
_COPIER_REGISTERS = 24
_REGISTERS = {2: 240, 3: 160}
"""Of a thread that multiplies, by the warpgroups that do; one alone has enough anyway."""
_SWEEP = 16
"""Tiles of tokens that meet a tile of W before the next one: x stays in L2, W passes by."""
_FLOPS, _MEMORY, _CACHE = 6.4e6, 3.2e4, 4.4e4
"""Of an SM in a microsecond: operations, bytes from memory, and bytes from L2."""
_EPILOGUE = 1.5
"""Microseconds in which a thread block does not multiply, for each tile."""


class Tuning(NamedTuple):
    """What decides about speed, not about meaning."""

    groups: int
    """Warpgroups that multiply: 1, 2 or 3, each for 64 tokens."""
    columns: int
    """Of the result in a tile: a multiple of 8, at most 128; of 16 where blocks share W."""
    share: Literal["w", "x"] | None = None
    """What the two blocks of a cluster share; None is no clusters."""
    depth: int = _LINE
    """Elements of E in a stage: 64, or 128, which is fewer and longer copies."""
    stages: int | None = None
    """Of the ring; None is as many as fit, up to 4."""


class _Plan(NamedTuple):
    """What is fixed when the kernel is traced."""

    tokens: int
    """T, a multiple of 8: copies can stop at no other row."""
    out: int
    """F."""
    width: int
    """E."""
    tuning: Tuning

    @property
    def rows(self) -> int:
        """Tokens of a tile."""
        return self.tuning.groups * _ROWS

    @property
    def cluster(self) -> int:
        return 1 if self.tuning.share is None else 2

    @property
    def high(self) -> int:
        """Tiles of tokens that a cluster does at once."""
        return 2 if self.tuning.share == "w" else 1

    @property
    def wide(self) -> int:
        """Tiles of columns that a cluster does at once."""
        return self.cluster // self.high

    @property
    def down(self) -> int:
        """Places of a cluster along the tokens."""
        return pl.cdiv(self.tokens, self.rows * self.high)

    @property
    def across(self) -> int:
        """Places of a cluster along the columns."""
        return pl.cdiv(self.out, self.tuning.columns * self.wide)

    @property
    def clusters(self) -> int:
        return min(_SMS // self.cluster, self.down * self.across)

    @property
    def waves(self) -> int:
        return pl.cdiv(self.down * self.across, self.clusters)

    @property
    def steps(self) -> int:
        return self.width // self.tuning.depth

    @property
    def products(self) -> int:
        """That make a step: one, or two of half the width.

        The kernel starts with as many registers a thread as all its threads can have alike, and
        ptxas wants those of one product to fit in them.
        """
        return 1 if self.tuning.groups < 3 or self.tuning.columns <= 64 else 2

    @property
    def stages(self) -> int:
        out = 2 * self.rows * self.tuning.columns
        stage = 2 * self.tuning.depth * (self.rows + 2 * self.tuning.columns)
        return min(self.tuning.stages or _STAGES, (_SHARED_BYTES - out) // stage, self.steps)

    @property
    def fits(self) -> bool:
        columns = self.tuning.columns
        return (
            self.out % 8 == 0
            and self.width % self.tuning.depth == 0
            and (self.tuning.share != "w" or columns % 16 == 0)
            and self.stages > 1
        )

    @property
    def cost(self) -> float:
        """A guess at the time, in microseconds."""
        columns = 2 * self.tuning.columns
        flops = 2 * self.rows * columns * self.width
        loaded = 2 * self.width * (self.rows / self.wide + columns / self.high)
        meet = min(_SWEEP, self.down * self.high)
        w = 2 * self.width * columns / meet
        tile = max(flops / _FLOPS, loaded / _CACHE, w / _MEMORY)
        return self.waves * (tile + _EPILOGUE)


def _ways(tokens: int, width: int) -> Iterator[Tuning]:
    """What was fast for so many tokens; how wide tiles should be depends on F, too."""
    for columns in range(128, 32, -8):
        if tokens <= 2 * _ROWS:
            depth = _LINE if width % (2 * _LINE) else 2 * _LINE
            yield Tuning(pl.cdiv(tokens, _ROWS), columns, None, depth)
        elif tokens <= 3 * _ROWS:
            yield Tuning(3, columns, "x")
        elif columns % 16 == 0:
            yield from (Tuning(groups, columns, "w") for groups in (2, 3))


@functools.cache
def _best(tokens: int, out: int, width: int) -> Tuning | None:
    """The way with the lowest cost, if there is any that fits."""
    padded = pl.cdiv(tokens, 8) * 8
    plans = [_Plan(padded, out, width, tuning) for tuning in _ways(tokens, width)]
    plan = min((p for p in plans if p.fits), key=lambda p: p.cost, default=None)
    return plan and plan.tuning


def fits(tokens: int, out: int, width: int, dtype: Any) -> bool:
    """Whether a gated product of [tokens, width] and [2, out, width] can run here, and pays."""
    if tokens < _FEWEST or jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        return False
    return _best(tokens, out, width) is not None


def gated_matmul(
    x: Float[Array, "T E"],
    w: Float[Array, "2 F E"],
    *,
    activation: str,
    tuning: Tuning | None = None,
    interpret: bool = False,
) -> Float[Array, "T F"]:
    """`block_reference.gated_matmul` for shapes that `fits` takes. Needs jax 0.11.2.

    Of any T it is right, but T that are no multiple of 8 cost a copy of x and of the result.

    Args:
        interpret: run on any device, slowly, without clusters.
    """
    (tokens, width), (_, out, _) = x.shape, w.shape
    tuning = tuning or _best(tokens, out, width)
    assert tuning is not None, "ask fits first"
    if interpret:
        tuning = tuning._replace(share=None)
    # TMA reads zeros behind an end and writes nothing there; the interpreter fails
    unit = tuning.groups * _ROWS if interpret else 8
    plan = _Plan(pl.cdiv(tokens, unit) * unit, out, width, tuning)
    assert plan.fits, plan
    if plan.tokens > tokens:
        x = jnp.pad(x, [(0, plan.tokens - tokens), (0, 0)])
    return _call(plan, activation, x, w, interpret)[:tokens]


def _call(plan: _Plan, activation: str, x: Array, w: Array, interpret: bool) -> Array:
    from jax.experimental.pallas import mosaic_gpu as plgpu  # slow to import, and new in jax 0.11

    def kernel(x_ref: jax.Ref, w_ref: jax.Ref, out_ref: jax.Ref, scratch: _Scratch) -> None:
        _ThreadBlock(plgpu, plan, activation, x_ref, w_ref, out_ref, scratch).run()

    run = plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((plan.tokens, plan.out), x.dtype),
        scratch_types=[_scratch(plgpu, plan, x.dtype)],
        compiler_params=plgpu.CompilerParams(approx_math=True),
        grid=(plan.clusters,),
        grid_names=("cluster",),
        cluster=(plan.cluster,),
        cluster_names=("block",),
        num_threads=plan.tuning.groups + 1,
        thread_name="warpgroup",
        interpret=plgpu.InterpretGPUParams(detect_races=True) if interpret else None,
        kernel_name="gated_matmul",
    )
    return run(x, w)


class _Scratch(NamedTuple):
    x: Any
    w: Any
    """Rows of the gate, then as many of the other half."""
    full: Any
    free: Any
    out: Any


def _scratch(plgpu: Any, plan: _Plan, dtype: Any) -> _Scratch:
    def tiled(*shape: int) -> Any:
        minor = math.gcd(shape[-1], _LINE)  # copies stop at multiples of it
        transforms = [plgpu.TilingTransform((8, minor))]
        if minor > 8:
            transforms.append(plgpu.SwizzleTransform(2 * minor))
        return plgpu.SMEM(shape, dtype, transforms=transforms)

    groups, columns, stages = plan.tuning.groups, plan.tuning.columns, plan.stages
    free = plgpu.Barrier(num_arrivals=groups, num_barriers=stages)
    if plan.cluster > 1:
        axes = ("block",)
        free = plgpu.ClusterBarrier(collective_axes=axes, num_arrivals=groups, num_barriers=stages)
    return _Scratch(
        x=tiled(stages, plan.rows, plan.tuning.depth),
        w=tiled(stages, 2 * columns, plan.tuning.depth),
        full=plgpu.Barrier(num_arrivals=3, num_barriers=stages),
        free=free,
        out=tiled(plan.rows, columns),
    )


class _Tile(NamedTuple):
    row: Array
    """Its first token."""
    column: Array
    before: Array
    """Steps of the thread block before this tile's."""


class _ThreadBlock(NamedTuple):
    gpu: Any
    """The module of Mosaic."""
    plan: _Plan
    activation: str
    x_ref: jax.Ref
    w_ref: jax.Ref
    out_ref: jax.Ref
    scratch: _Scratch

    def run(self) -> None:
        warpgroup, groups = lax.axis_index("warpgroup"), self.plan.tuning.groups

        @pl.when(warpgroup == groups)
        def _() -> None:
            if groups > 1:
                self.gpu.set_max_registers(_COPIER_REGISTERS, action="decrease")
            # one warp, since every thread of a copying group signals each copy
            self.gpu.warp_map(lambda warp: pl.when(warp == 0)(self.copy))

        @pl.when(warpgroup < groups)
        def _() -> None:
            if groups > 1:
                self.gpu.set_max_registers(_REGISTERS[groups], action="increase")
            for slot in range(self.plan.stages):
                self.gpu.barrier_arrive(self.scratch.free.at[slot])
            self.each_tile(functools.partial(self.serve, warpgroup))
            self.gpu.wait_smem_to_gmem(0)

    def copy(self) -> None:
        self.each_tile(self.load)
        for slot in range(self.plan.stages):  # nobody may signal a block that is gone
            self.gpu.barrier_wait(self.scratch.free.at[slot])

    def each_tile(self, serve: Any) -> None:
        """Calls `serve` for each tile of this thread block."""
        plan, first = self.plan, lax.axis_index("cluster")
        whole = jnp.int32(plan.down * plan.across // plan.clusters)
        left = plan.down * plan.across % plan.clusters

        def step(wave: Array, carry: None) -> None:
            serve(self.tile(wave * plan.clusters + first, wave * plan.steps))

        lax.fori_loop(0, whole + (first < left).astype(jnp.int32), step, None)

    def tile(self, number: Array, before: Array) -> _Tile:
        """Down the tokens of a sweep first, then across, then the next sweep."""
        plan = self.plan
        most = _SWEEP // plan.high
        sweep = lax.div(number, jnp.int32(most * plan.across))
        height = jnp.minimum(most, plan.down - sweep * most)
        within = number - sweep * (most * plan.across)
        row, column = sweep * most + lax.rem(within, height), lax.div(within, height)
        block = lax.axis_index("block")
        row = row * plan.high + (block if plan.high > 1 else 0)
        column = column * plan.wide + (block if plan.wide > 1 else 0)
        return _Tile(row * plan.rows, column * plan.tuning.columns, before)

    def slot(self, number: Array) -> Array:
        return lax.rem(number, jnp.int32(self.plan.stages))

    def load(self, tile: _Tile) -> None:
        plan, scratch, columns = self.plan, self.scratch, self.plan.tuning.columns

        def step(number: Array, carry: None) -> None:
            slot = self.slot(tile.before + number)
            depth = pl.ds(number * plan.tuning.depth, plan.tuning.depth)
            full = scratch.full.at[slot]
            self.gpu.barrier_wait(scratch.free.at[slot])
            for part in range(2):
                source = self.w_ref.at[part, pl.ds(tile.column, columns), depth]
                target = scratch.w.at[slot, pl.ds(part * columns, columns)]
                self.gpu.copy_gmem_to_smem(source, target, full, collective_axes=self.shared("w"))
            source = self.x_ref.at[pl.ds(tile.row, plan.rows), depth]
            target = scratch.x.at[slot]
            self.gpu.copy_gmem_to_smem(source, target, full, collective_axes=self.shared("x"))

        lax.fori_loop(0, plan.steps, step, None)

    def shared(self, what: str) -> str | None:
        return "block" if self.plan.tuning.share == what else None

    def serve(self, warpgroup: Array, tile: _Tile) -> None:
        columns, count = self.plan.tuning.columns, self.plan.products
        rows = pl.ds(warpgroup * _ROWS, _ROWS)
        shape = _ROWS, 2 * columns // count
        accumulators = [self.gpu.ACC(shape, jnp.float32) for _ in range(count)]
        multiply = functools.partial(self.multiply, rows, tile)
        parts = pl.run_scoped(multiply, *accumulators)
        self.release(tile.before + self.plan.steps - 1)
        if count == 1:
            parts = parts[0][:, :columns], parts[0][:, columns:]
        self.store(rows, tile, *parts)

    def multiply(self, rows: Any, tile: _Tile, *accs: Any) -> list[Array]:
        scratch = self.scratch

        def start(number: Array) -> None:
            slot = self.slot(number)
            self.gpu.barrier_wait(scratch.full.at[slot])
            for n, acc in enumerate(accs):
                w = scratch.w.at[slot, pl.ds(n * acc.shape[1], acc.shape[1])]
                self.gpu.wgmma(acc, scratch.x.at[slot, rows], w.transpose((1, 0)))

        def step(number: Array, carry: None) -> None:
            start(tile.before + number)
            self.gpu.wgmma_wait(len(accs))
            self.release(tile.before + number - 1)

        start(tile.before)
        lax.fori_loop(1, self.plan.steps, step, None)
        return [acc[...] for acc in accs]

    def release(self, number: Array) -> None:
        if self.plan.cluster > 1:  # one warp signals this barrier for all
            self.gpu.commit_smem()
        self.gpu.barrier_arrive(self.scratch.free.at[self.slot(number)])

    def store(
        self, rows: Any, tile: _Tile, gate: Float[Array, "64 C"], up: Float[Array, "64 C"]
    ) -> None:
        out = self.scratch.out.at[rows]
        y = (_activated(self.activation, gate) * up).astype(out.dtype)
        self.gpu.wait_smem_to_gmem(0, wait_read_only=True)
        out[...] = y
        self.gpu.commit_smem()
        columns = pl.ds(tile.column, self.plan.tuning.columns)
        to = self.out_ref.at[pl.ds(tile.row + rows.start, _ROWS), columns]
        self.gpu.copy_smem_to_gmem(out, to)


def _activated(activation: str, x: Array) -> Array:
    """x times the logistic function of it, or of what GELU takes for it."""
    scale = {"silu": 1.0, "gelu_tanh": 2 * math.sqrt(2 / math.pi)}[activation]
    power = -scale * x
    if activation == "gelu_tanh":
        power *= 1 + 0.044715 * x * x
    # a division would take its slow path, this two instructions
    root = lax.rsqrt(1 + jnp.exp(power))
    return x * (root * root)
