"""Products with weights, as Mosaic kernels for Hopper GPUs.

`block_reference` defines them. `gated_matmul`: a tile takes 64 tokens a warpgroup and as many
columns of the gate as of the other half, so that the two meet in the registers of one thread and
only their product is written. An update of low rank makes the sums longer. `joint_matmul`:
few tokens meet two matrices, and tiles of the second, which is small, fill SMs that the first
leaves idle.

A thread block lives as long as the kernel: one of its warps streams x and W through a ring in
shared memory, across the borders of tiles, and the other warpgroups multiply.

Of many tokens, L2 could not deliver all that the tiles of 132 thread blocks read. Two blocks
therefore make a cluster and share what both need: each reads half of it and sends that to both.
For few tokens nothing counts but the time that W takes to come from memory, so tiles are chosen
such that whole waves of them fill the GPU.
Letters as in `block_reference`, and O, M columns of a joint product.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from .matmul_tiles import (
    LINE,
    ROWS,
    GatedPlan,
    JointPlan,
    Plan,
    Tuning,
    gated_plan,
    joint_plan,
    padded,
)

_FEWEST = 9
"""Tokens. Below it XLA's own kernels are as fast."""
_MOST_JOINT = ROWS
"""Tokens of a joint product. Above it XLA's kernels are as fast."""
_COPIER_REGISTERS = 24
_REGISTERS = {2: 240, 3: 160}
"""Of a thread that multiplies, by the warpgroups that do; one alone has enough anyway."""


def fits(tokens: int, out: int, width: int, dtype: Any, *, low: int = 0) -> bool:
    """Whether a gated product of [tokens, width] and [2, out, width] can run here, and pays.

    Args:
        low: K of the update, 0 without one.
    """
    if tokens < _FEWEST or jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        return False
    return gated_plan(tokens, out, width, low) is not None


def joint_fits(tokens: int, out: int, low: int, width: int, dtype: Any) -> bool:
    """Whether products of [tokens, width] with [out, width] and [low, width] can run here.

    `low` 0 is no second product.
    """
    few = _FEWEST <= tokens <= _MOST_JOINT
    if not few or jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        return False
    return joint_plan(ROWS, out, width, low) is not None


def gated_matmul(
    x: Float[Array, "T E"],
    w: Float[Array, "2 F E"],
    h: Float[Array, "T K"] | None = None,
    b: Float[Array, "2 F K"] | None = None,
    *,
    activation: str,
    tuning: Tuning | None = None,
    interpret: bool = False,
) -> Float[Array, "T F"]:
    """`block_reference.gated_matmul` for shapes that `fits` takes. Needs jax 0.11.2.

    Of any T it is right, but T that are no multiple of 8 cost a copy of x, h and the result, and
    K above 64 that are no multiple of 64 one of h and b.

    Args:
        h, b: both or none; K a multiple of 8.
        interpret: run on any device, slowly, without clusters.
    """
    (tokens, width), (_, out, _) = x.shape, w.shape
    update = () if h is None or b is None else (h, b)
    low = update[0].shape[-1] if update else 0
    if tuning is None:
        best = gated_plan(tokens, out, width, low)
        assert best is not None, "ask fits first"
        tuning = best.tuning
    plan = GatedPlan(padded(tokens), out, width, low, _without_clusters(tuning, interpret))
    unit = LINE if low > LINE else 1
    if interpret:  # TMA reads zeros behind an end and writes nothing there; the interpreter fails
        plan = dataclasses.replace(plan, tokens=pl.cdiv(tokens, plan.rows) * plan.rows)
        unit = tuning.depth
    assert plan.fits, plan

    if update:
        behind = (0, -low % unit)
        h, b = (jnp.pad(a, [(0, 0)] * (a.ndim - 1) + [behind]) if behind[1] else a for a in update)
        update = _rows(h, plan.tokens), b
        plan = dataclasses.replace(plan, low=low + behind[1])
    block = functools.partial(_Gated, plan, activation=activation)
    result = jax.ShapeDtypeStruct((plan.tokens, out), x.dtype)
    run = _kernel("gated_matmul", plan, block, result, interpret)
    return run(_rows(x, plan.tokens), w, *update)[:tokens]


def joint_matmul(
    x: Float[Array, "T E"],
    w: Float[Array, "O E"],
    a: Float[Array, "M E"],
    *,
    tuning: Tuning | None = None,
    interpret: bool = False,
) -> tuple[Float[Array, "T O"], Float[Array, "T M"]]:
    """`block_reference.joint_matmul` for shapes that `joint_fits` takes. Needs jax 0.11.2.

    Args:
        interpret: run on any device, slowly.
    """
    y, h = _joint("joint_matmul", x, (w, a), tuning, interpret)
    return y, h


def matmul(
    x: Float[Array, "T E"],
    w: Float[Array, "O E"],
    *,
    tuning: Tuning | None = None,
    interpret: bool = False,
) -> Float[Array, "T O"]:
    """x times the transpose of w, for shapes that `joint_fits` takes with M = 0.

    As `joint_matmul` without its second product.
    """
    [y] = _joint("matmul", x, (w,), tuning, interpret)
    return y


def _joint(
    name: str, x: Array, matrices: Sequence[Array], tuning: Tuning | None, interpret: bool
) -> list[Array]:
    """The products of x with one matrix or two."""
    (tokens, width), (out, low) = x.shape, [*map(len, matrices), 0][:2]
    if tuning is None:
        best = joint_plan(ROWS, out, width, low)
        assert best is not None, "ask joint_fits first"
        tuning = best.tuning
    plan = JointPlan(ROWS, out, width, low, tuning)  # copies behind the end of x would take longer
    if interpret:  # as above
        out, low = (pl.cdiv(n, tuning.columns) * tuning.columns for n in (out, low))
        plan = dataclasses.replace(plan, out=out, low=low)
    assert plan.fits, plan
    whole = [_rows(m, n) for m, n in zip(matrices, (plan.out, plan.low), strict=False)]
    results = [jax.ShapeDtypeStruct((plan.tokens, len(m)), x.dtype) for m in whole]
    run = _kernel(name, plan, functools.partial(_Joint, plan), results, interpret)
    found = run(_rows(x, plan.tokens), *whole)
    return [y[:tokens, : len(m)] for y, m in zip(found, matrices, strict=True)]


def _without_clusters(tuning: Tuning, interpret: bool) -> Tuning:
    return tuning._replace(share=None) if interpret else tuning


def _rows(x: Array, count: int) -> Array:
    """x with `count` rows, zeros behind its own."""
    behind = [(0, count - x.shape[0])] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, behind) if count > x.shape[0] else x


def _kernel(
    name: str, plan: Plan, block: Callable[..., "_ThreadBlock"], out_type: Any, interpret: bool
) -> Callable[..., Any]:
    """`block` makes a thread block of Mosaic's module, scratch, and the inputs and outputs."""
    from jax.experimental.pallas import mosaic_gpu as plgpu  # slow to import, and new in jax 0.11

    dtype = jax.tree.leaves(out_type)[0].dtype

    def kernel(*refs: Any) -> None:
        block(plgpu, refs[-1], refs[:-1]).run()

    return plgpu.kernel(
        kernel,
        out_type=out_type,
        scratch_types=[_scratch(plgpu, plan, dtype)],
        compiler_params=plgpu.CompilerParams(approx_math=True),
        grid=(plan.clusters,),
        grid_names=("cluster",),
        cluster=(plan.cluster,),
        cluster_names=("block",),
        num_threads=plan.tuning.groups + 1,
        thread_name="warpgroup",
        interpret=plgpu.InterpretGPUParams(detect_races=True) if interpret else None,
        kernel_name=name,
    )


class _Scratch(NamedTuple):
    x: Any
    w: Any
    """Of a gated product rows of the gate, then as many of the other half."""
    full: Any
    free: Any
    out: Any


def _scratch(plgpu: Any, plan: Plan, dtype: Any) -> _Scratch:
    def tiled(*shape: int) -> Any:
        minor = math.gcd(shape[-1], LINE)  # copies stop at multiples of it
        transforms = [plgpu.TilingTransform((8, minor))]
        if minor > 8:
            transforms.append(plgpu.SwizzleTransform(2 * minor))
        return plgpu.SMEM(shape, dtype, transforms=transforms)

    groups, depth, stages = plan.tuning.groups, plan.tuning.depth, plan.stages
    free = plgpu.Barrier(num_arrivals=groups, num_barriers=stages)
    if plan.cluster > 1:
        axes = ("block",)
        free = plgpu.ClusterBarrier(collective_axes=axes, num_arrivals=groups, num_barriers=stages)
    return _Scratch(
        x=tiled(stages, plan.rows, depth),
        w=tiled(stages, plan.weights, depth),
        full=plgpu.Barrier(num_arrivals=plan.copies, num_barriers=stages),
        free=free,
        out=tiled(plan.rows, plan.tuning.columns),
    )


class _Tile(NamedTuple):
    row: Array
    """Its first token."""
    column: Array
    before: Array
    """Steps of the thread block before this tile's."""


@dataclasses.dataclass(frozen=True)
class _ThreadBlock:
    """What both products have in common: the ring and the sums."""

    plan: Plan
    gpu: Any
    """The module of Mosaic."""
    scratch: _Scratch
    refs: tuple[jax.Ref, ...]
    """Inputs, in the order of the function, and results."""

    def load(self, tile: _Tile) -> None:
        """Fills `all_steps` stages of the ring."""
        raise NotImplementedError

    def finish(self, rows: Any, tile: _Tile, accs: list[Array]) -> None:
        """Makes results of the sums of `rows`, those of one warpgroup within the tile."""
        raise NotImplementedError

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

    def each_tile(self, serve: Callable[[_Tile], None]) -> None:
        """Calls `serve` for each tile of this thread block."""
        plan, first = self.plan, lax.axis_index("cluster")
        whole = jnp.int32(plan.down * plan.across // plan.clusters)
        left = plan.down * plan.across % plan.clusters

        def step(wave: Array, carry: None) -> None:
            serve(self.tile(wave * plan.clusters + first, wave * plan.all_steps))

        lax.fori_loop(0, whole + (first < left).astype(jnp.int32), step, None)

    def tile(self, number: Array, before: Array) -> _Tile:
        """Down the tokens of a sweep first, then across, then the next sweep."""
        plan, most = self.plan, self.plan.sweep
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

    def free_slot(self, number: Array) -> Array:
        """Where a step's copies go, once what lay there has been multiplied."""
        slot = self.slot(number)
        self.gpu.barrier_wait(self.scratch.free.at[slot])
        return slot

    def fetch(self, source: Any, name: Literal["x", "w"], *place: Any) -> None:
        """Copies to a place [slot, rows, elements of E or K] of x or W."""
        axes = "block" if self.plan.tuning.share == name else None
        target = getattr(self.scratch, name).at[place]
        full = self.scratch.full.at[place[0]]
        self.gpu.copy_gmem_to_smem(source, target, full, collective_axes=axes)

    def serve(self, warpgroup: Array, tile: _Tile) -> None:
        plan, count = self.plan, self.plan.products
        rows = pl.ds(warpgroup * ROWS, ROWS)
        shape = ROWS, plan.weights // count
        accumulators = [self.gpu.ACC(shape, jnp.float32) for _ in range(count)]
        accs = pl.run_scoped(functools.partial(self.multiply, rows, tile), *accumulators)
        self.release(tile.before + plan.all_steps - 1)
        self.finish(rows, tile, accs)

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
        lax.fori_loop(1, self.plan.all_steps, step, None)
        return [acc[...] for acc in accs]

    def release(self, number: Array) -> None:
        if self.plan.cluster > 1:  # one warp signals this barrier for all
            self.gpu.commit_smem()
        self.gpu.barrier_arrive(self.scratch.free.at[self.slot(number)])

    def store(self, rows: Any, y: Float[Array, "64 C"]) -> Any:
        """Where y lies, ready to be copied, once what lay there has been."""
        out = self.scratch.out.at[rows]
        y = y.astype(out.dtype)
        self.gpu.wait_smem_to_gmem(0, wait_read_only=True)
        out[...] = y
        self.gpu.commit_smem()
        return out


@dataclasses.dataclass(frozen=True)
class _Gated(_ThreadBlock):
    plan: GatedPlan
    activation: str

    def tile(self, number: Array, before: Array) -> _Tile:
        if self.plan.low:
            # where all steps are a multiple of the stages, ptxas would know each step's place, and
            # run out of registers with all their addresses
            before = lax.optimization_barrier(before)
        return super().tile(number, before)

    def load(self, tile: _Tile) -> None:
        x_ref, w_ref, *update, _ = self.refs
        self.stream(tile, tile.before, self.plan.steps, x_ref, w_ref)
        if update:
            steps = self.plan.all_steps - self.plan.steps
            self.stream(tile, tile.before + self.plan.steps, steps, *update)

    def stream(
        self, tile: _Tile, before: Array, steps: int, x_ref: jax.Ref, w_ref: jax.Ref
    ) -> None:
        """Copies what belongs to a tile of x and W, or of h and B."""
        plan, columns = self.plan, self.plan.tuning.columns
        rows = pl.ds(tile.row, plan.rows)

        def step(number: Array, carry: None) -> None:
            depth = pl.ds(number * plan.tuning.depth, plan.tuning.depth)
            slot = self.free_slot(before + number)
            for part in range(2):
                source = w_ref.at[part, pl.ds(tile.column, columns), depth]
                self.fetch(source, "w", slot, pl.ds(part * columns, columns))
            self.fetch(x_ref.at[rows, depth], "x", slot)

        lax.fori_loop(0, steps, step, None)

    def finish(self, rows: Any, tile: _Tile, accs: list[Array]) -> None:
        columns = self.plan.tuning.columns
        gate, up = accs if len(accs) > 1 else (accs[0][:, :columns], accs[0][:, columns:])
        out = self.store(rows, activated(self.activation, gate) * up)
        to = self.refs[-1].at[pl.ds(tile.row + rows.start, ROWS), pl.ds(tile.column, columns)]
        self.gpu.copy_smem_to_gmem(out, to)


@dataclasses.dataclass(frozen=True)
class _Joint(_ThreadBlock):
    plan: JointPlan

    def either(self, tile: _Tile, serve: Callable[[int, Array], None]) -> None:
        """Calls `serve` with 0 or 1 for W or A, whose tile it is, and the column in there."""
        if not self.plan.low:
            return serve(0, tile.column)
        border = self.plan.first_low * self.plan.tuning.columns
        pl.when(tile.column < border)(lambda: serve(0, tile.column))
        pl.when(tile.column >= border)(lambda: serve(1, tile.column - border))

    def load(self, tile: _Tile) -> None:
        plan, x_ref = self.plan, self.refs[0]
        rows = pl.ds(tile.row, plan.rows)

        def stream(which: int, column: Array) -> None:
            columns = pl.ds(column, plan.tuning.columns)

            def step(number: Array, carry: None) -> None:
                depth = pl.ds(number * plan.tuning.depth, plan.tuning.depth)
                slot = self.free_slot(tile.before + number)
                self.fetch(self.refs[1 + which].at[columns, depth], "w", slot)
                self.fetch(x_ref.at[rows, depth], "x", slot)

            lax.fori_loop(0, plan.steps, step, None)

        self.either(tile, stream)

    def finish(self, rows: Any, tile: _Tile, accs: list[Array]) -> None:
        out = self.store(rows, accs[0])
        results = self.refs[1 + len(self.refs) // 2 :]

        def send(which: int, column: Array) -> None:
            columns = pl.ds(column, self.plan.tuning.columns)
            to = results[which].at[pl.ds(tile.row + rows.start, ROWS), columns]
            self.gpu.copy_smem_to_gmem(out, to)

        self.either(tile, send)


def activated(activation: str, x: Array) -> Array:
    """x times the logistic function of it, or of what GELU takes for it."""
    scale = {"silu": 1.0, "gelu_tanh": 2 * math.sqrt(2 / math.pi)}[activation]
    power = -scale * x
    if activation == "gelu_tanh":
        power *= 1 + 0.044715 * x * x
    # a division would take its slow path, this two instructions
    root = lax.rsqrt(1 + jnp.exp(power))
    return x * (root * root)
