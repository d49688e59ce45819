"""Attention of ragged rows over a pool of KV pages, as a Mosaic kernel for Hopper GPUs.

The meaning is that of `reference.paged_prefill`; the shape is that of FlashAttention-3
(arXiv:2407.08608). A thread block lives as long as the kernel and serves tile after tile. One of
its warps streams queries, and page after page of keys and values, into shared memory, across the
borders of tiles; two warpgroups multiply, each for 64 of a tile's 128 rows. A row is a query token
of one head. While the tensor cores multiply queries with a block of keys, and the weights of the
block before with its values, a softmax runs on the other units.

Blocks of keys begin at multiples of their size, so that the bits of a result do not depend on how
a prompt was cut into chunks, nor on what else is in the step.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Bool, Float, Int, Shaped

from . import global_memory
from .prefill_tiles import Tile, tiles, with_blocks

_ROWS = 128
"""Query tokens times heads of a tile."""
_HALF = _ROWS // 2
"""Rows of a warpgroup: those of one wgmma."""
_BLOCKS = 132
"""Thread blocks: the multiprocessors of an H100 or H200."""
_COPIER = 2
"""The warpgroup that copies; 0 and 1 multiply."""
_COPIER_REGISTERS, _REGISTERS = 24, 240
"""Of a thread that copies, and of one that multiplies."""
_STAGES = 6
"""Blocks of keys or values in shared memory, if it can hold them."""
_SHARED_BYTES = 225 * 1024
"""Of a thread block, less what barriers and alignment take."""
_ROW = plgpu.Layout.WGMMA.reduce(1)
"""One number for each row of a warpgroup."""
_LOWEST = -1e30
_LOG2_E = math.log2(math.e)


class Plan(NamedTuple):
    """What is fixed when the kernel is compiled."""

    width: int
    """Head size."""
    groups: int
    heads: int
    page: int
    scale: float
    window: int | None
    soft_cap: float | None
    interpret: bool
    ranged: bool = False
    """Whether a query sees a range of keys of its own, rather than those before it."""

    @classmethod
    def of_ranges(cls, width: int, heads: int, scale: float, interpret: bool) -> Self:
        """For one row whose keys lie in order, and as many of their heads as of queries."""
        plan = cls(width, 1, heads, 0, scale, None, None, interpret, ranged=True)
        return plan._replace(page=plan.keys)

    @property
    def members(self) -> int:
        """Query heads of a tile; they share a KV head."""
        return _members(self.groups)

    @property
    def sets(self) -> int:
        """Tiles of the same tokens."""
        return self.heads // self.members

    @property
    def tokens(self) -> int:
        """Query tokens of a tile."""
        return _ROWS // self.members

    @property
    def run(self) -> int:
        """Consecutive tokens of one head in the rows of one warpgroup."""
        return min(self.tokens, _HALF)

    @property
    def keys(self) -> int:
        """Tokens of a block of keys."""
        return 128 if self.width <= 128 else 64

    @property
    def overlap(self) -> bool:
        """Multiply queries with the next block of keys before the softmax of this one.

        The widest heads need the registers for their sums.
        """
        return self.width <= 192

    @property
    def chunk(self) -> int:
        """Tokens of one copy of keys or values: they lie in one page."""
        return min(self.page, self.keys)

    @property
    def chunks(self) -> int:
        return self.keys // self.chunk

    @property
    def swizzle(self) -> int:
        return 128 if self.width % 64 == 0 else 64

    @property
    def out_width(self) -> int:
        """Columns of a row of the result; TMA wants 128 bytes, so 96 columns become 128."""
        return -(-self.width // 64) * 64

    @property
    def piece(self) -> int:
        """Columns of a result that leave together."""
        return 64 if self.out_width % 128 else 128

    @property
    def stages(self) -> int:
        room = _SHARED_BYTES - 2 * _ROWS * (self.width + self.piece)
        return min(_STAGES, room // (2 * self.keys * self.width))

    def memory(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Shared memory as wgmma wants it."""
        tiling = plgpu.TilingTransform((8, self.swizzle // 2))
        return plgpu.SMEM(shape, dtype, transforms=(tiling, plgpu.SwizzleTransform(self.swizzle)))


class _Softmax(NamedTuple):
    """A softmax-weighted sum in progress, for each row of a warpgroup. All float32."""

    peak: Float[Array, " 64"]
    total: Float[Array, " 64"]
    acc: Float[Array, "64 D"]


def _members(groups: int) -> int:
    """Query heads of a tile: as many of a KV head as divide its rows."""
    return min(groups & -groups, 16)


def paged_prefill(
    q: Float[Array, "T Hq D"],
    k_pool: Float[Array, "P S Hkv D"],
    v_pool: Float[Array, "P S Hkv D"],
    page_table: Int[Array, "R M"],
    lengths: Int[Array, " R"],
    query_starts: Int[Array, " R+1"],
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    skip: Bool[Array, " R"] | None = None,
    interpret: bool = False,
) -> Float[Array, "T Hq D"]:
    """`reference.paged_prefill` as a kernel for Hopper; q and pools of the same 16 bits.

    Needs jax 0.11.2. Pages of 64 tokens or more are the fast ones: a copy ends at a page's end.

    Args:
        scale: more than 0.
        skip: rows to leave out; their results are undefined.
        interpret: run on any device, slowly.
    """
    count, heads, width = q.shape
    _, page, kv_heads, _ = k_pool.shape
    options = scale, window, soft_cap, interpret
    plan = Plan(width, heads // kv_heads, heads, page, *options)
    table = tiles(query_starts, lengths, count, plan.tokens, skip)
    table = with_blocks(table, plan.keys, window)
    # TMA counts rows in eights; it reads zeros behind the end, where the interpreter fails
    padding = -count % 8 + plan.tokens * interpret
    rows = q.reshape(count, heads * width)
    rows = jnp.pad(rows, ((0, padding), (0, 0))) if padding else rows
    pools = (pool.reshape(-1, kv_heads * width) for pool in (k_pool, v_pool))
    out = call(plan, table.shape[0], count, q.dtype)(table, page_table, rows, *pools)
    return out.reshape(count, heads, plan.out_width)[..., :width]


def call(plan: Plan, count: int, tokens: int, dtype: Any) -> Callable[..., Array]:
    """The kernel for `count` tiles of `tokens` queries.

    It takes, if the plan is `ranged`, the first key and the one behind the last that each query
    sees [2, T]; a table of `Tile`s, a page table, queries [T, Hq * D], and tokens of the pools of
    keys and of values [P * S, Hkv * D]. It gives [T, Hq * out_width].
    """
    items, stages = count * plan.sets, plan.stages
    grid = min(_BLOCKS, items)
    scratch = [
        plan.memory((2, _HALF, plan.width), dtype),
        plgpu.Barrier(num_arrivals=_ROWS // plan.run),
        plgpu.Barrier(num_arrivals=2),
        plan.memory((stages, plan.keys, plan.width), dtype),
        plgpu.Barrier(num_arrivals=plan.chunks, num_barriers=stages),
        plgpu.Barrier(num_arrivals=2, num_barriers=stages),
        plgpu.Barrier(),
        plgpu.SMEM((2, _HALF, plan.piece), dtype),
    ]
    if plan.interpret:  # it multiplies from memory only
        scratch.append(plan.memory((2, _HALF, plan.keys), dtype))

    def kernel(*refs: Any) -> None:
        ranges, *others = refs if plan.ranged else (None, *refs)
        _ThreadBlock(plan, items, grid, ranges, *others).run()

    return plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((tokens, plan.heads * plan.out_width), dtype),
        scratch_types=scratch,
        grid=(grid,),
        grid_names=("block",),
        num_threads=3,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=plgpu.InterpretGPUParams(detect_races=True) if plan.interpret else None,
        kernel_name="paged_prefill",
    )


class _ThreadBlock(NamedTuple):
    """The kernel. Keys and values share a ring, in the order in which they are multiplied."""

    plan: Plan
    items: int
    """Tiles of all heads."""
    grid: int
    ranges: jax.Ref | None
    tiles: jax.Ref
    page_table: jax.Ref
    q_ref: jax.Ref
    k_ref: jax.Ref
    v_ref: jax.Ref
    out_ref: jax.Ref
    q: Any
    q_full: Any
    q_free: Any
    ring: Any
    full: Any
    free: Any
    cleared: Any
    """Tells one warpgroup what the other has done."""
    out: Any
    weights: Any = None

    def run(self) -> None:
        warpgroup = lax.axis_index("warpgroup")
        frees = [self.q_free, *(self.free.at[n] for n in range(self.plan.stages))]

        def copy(warp: Array) -> None:
            @pl.when(warp == 0)
            def _() -> None:
                self.each_tile(self.load)
                for free in frees:  # the interpreter wants every signal seen
                    plgpu.barrier_wait(free)

        @pl.when(warpgroup == _COPIER)
        def _() -> None:
            plgpu.set_max_registers(_COPIER_REGISTERS, action="decrease")
            # one warp, since every thread of a copying group signals each copy
            plgpu.warp_map(copy)

        @pl.when(warpgroup != _COPIER)
        def _() -> None:
            plgpu.set_max_registers(_REGISTERS, action="increase")
            for free in frees:
                plgpu.barrier_arrive(free)
            self.each_tile(functools.partial(self.serve, warpgroup))
            plgpu.wait_smem_to_gmem(0)

    def each_tile(self, serve: Callable[[Tile, Array, Array], None]) -> None:
        """Calls serve(tile, first head, slots used before) for each tile of this thread block.

        Tiles are dealt out to and fro, so that no thread block always gets the largest.
        """
        block, grid, sets = lax.axis_index("block"), self.grid, jnp.int32(self.plan.sets)

        def place(deal: Array) -> Array:
            return deal * grid + jnp.where(deal & 1 == 0, block, grid - 1 - block)

        def step(deal: Array, before: Array) -> Array:
            number = lax.div(place(deal), sets)
            tile = Tile(*(self.tiles[number, n] for n in range(len(Tile._fields))))
            serve(tile, lax.rem(place(deal), sets) * self.plan.members, before)
            return before + 2 * (tile.stop - tile.start)

        whole = jnp.int32(self.items // grid)
        count = whole + (place(whole) < self.items).astype(jnp.int32)
        lax.fori_loop(0, count, step, jnp.int32(0))

    def slot(self, number: Array) -> Array:
        return lax.rem(number, jnp.int32(self.plan.stages))

    def load(self, tile: Tile, head: Array, before: Array) -> None:
        """Copies what a tile needs: values one block later than keys, as they are multiplied."""

        def step(block: Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            pages, earlier = carry
            following = self.pages(tile, block + 1)  # their latency hides behind the copies
            number = before + 2 * (block - tile.start)
            copy = functools.partial(self.load_block, head)

            @pl.when(block < tile.stop)
            def _() -> None:
                copy(self.k_ref, jnp.maximum(number - 1, before), block, pages)

            pl.when(block == tile.start)(lambda: self.load_queries(tile, head))

            @pl.when(block > tile.start)
            def _() -> None:
                last = (block == tile.stop).astype(jnp.int32)
                copy(self.v_ref, number - last, block - 1, earlier)

            return following, pages

        @pl.when(tile.start < tile.stop)
        def _() -> None:
            pages = self.pages(tile, tile.start)
            lax.fori_loop(tile.start, tile.stop + 1, step, (pages, pages))

    def pages(self, tile: Tile, block: Array) -> tuple[Array, ...]:
        """Those of a block of keys; instead of what lies outside the row, any of its pages."""
        plan = self.plan
        page = jnp.int32(plan.page)
        first, last = lax.div(tile.oldest, page), lax.div(tile.length - 1, page)
        column = lax.div(block * plan.keys, page)
        columns = (lax.max(first, lax.min(column + n, last)) for n in range(plan.chunks))
        return tuple(self.page_table[tile.row, column] for column in columns)

    def load_block(
        self, head: Array, ref: jax.Ref, number: Array, block: Array, pages: tuple[Array, ...]
    ) -> None:
        plan, slot = self.plan, self.slot(number)
        column = lax.div(head, jnp.int32(plan.groups)) * plan.width
        plgpu.barrier_wait(self.free.at[slot])
        for n, page in enumerate(pages):
            row = page * plan.page
            if plan.page > plan.keys:
                row += lax.rem(block * plan.keys, jnp.int32(plan.page))
            source = ref.at[pl.ds(row, plan.chunk), pl.ds(column, plan.width)]
            target = self.ring.at[slot, pl.ds(n * plan.chunk, plan.chunk)]
            plgpu.copy_gmem_to_smem(source, target, self.full.at[slot])

    def load_queries(self, tile: Tile, head: Array) -> None:
        plan = self.plan
        token = lax.div(tile.token, jnp.int32(8)) * 8  # it is a multiple of 8; this proves it
        plgpu.barrier_wait(self.q_free)
        for row in range(0, _ROWS, plan.run):
            member, offset = divmod(row, plan.tokens)
            half, place = divmod(row, _HALF)
            columns = pl.ds((head + member) * plan.width, plan.width)
            source = self.q_ref.at[pl.ds(token + offset, plan.run), columns]
            target = self.q.at[half, pl.ds(place, plan.run)]
            plgpu.copy_gmem_to_smem(source, target, self.q_full)

    def serve(self, warpgroup: Array, tile: Tile, head: Array, before: Array) -> None:
        rows = _Rows(self, warpgroup, tile, before, self.ranges_of(warpgroup, tile))

        @pl.when(tile.begin < tile.end)
        def _() -> None:
            # rows without keys, the padding, get zeros
            state = lax.cond(tile.start < tile.stop, rows.attend, rows.nothing)
            share = 1.0 / jnp.where(state.total > 0, state.total, 1.0)
            self.store(warpgroup, tile, head, state.acc * _columns(share, state.acc))

    def ranges_of(self, warpgroup: Array, tile: Tile) -> tuple[Array, Array] | None:
        """The first key that each row of a warpgroup sees, and the one behind the last."""
        if self.ranges is None:
            return None
        tokens = pl.ds(tile.token + warpgroup * _HALF, _HALF)
        first, behind = (self.ranges.at[n, tokens] for n in range(2))
        if self.plan.interpret:
            return first[...], behind[...]
        load = functools.partial(global_memory.load, plgpu, layout=_ROW)
        return load(first), load(behind)

    def store(
        self, warpgroup: Array, tile: Tile, head: Array, result: Float[Array, "64 D"]
    ) -> None:
        plan, out = self.plan, self.out.at[warpgroup]
        for column in range(0, plan.out_width, plan.piece):
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            out[...] = result[:, column : column + plan.piece].astype(out.dtype)
            plgpu.commit_smem()
            self.send(out, warpgroup, tile, head * plan.out_width + column)

    def send(self, out: Any, warpgroup: Array, tile: Tile, column: Array) -> None:
        """Copies a warpgroup's rows; token by token where not all are the tile's own."""
        plan = self.plan

        def copy(row: Array, token: Array, count: int, member: Array) -> None:
            columns = pl.ds(column + member * plan.out_width, plan.piece)
            target = self.out_ref.at[pl.ds(token, count), columns]
            plgpu.copy_smem_to_gmem(out.at[pl.ds(row, count)], target)

        def step(number: Array, carry: None) -> None:
            row, tokens = number * plan.run, jnp.int32(plan.tokens)
            member = lax.div(warpgroup * _HALF + row, tokens)
            token = tile.token + lax.rem(warpgroup * _HALF + row, tokens)
            begin = jnp.maximum(token, tile.begin)
            end = jnp.minimum(token + plan.run, tile.end)

            def single(at: Array, carry: None) -> None:
                copy(row + at - token, at, 1, member)

            pl.when(end - begin == plan.run)(lambda: copy(row, token, plan.run, member))
            few = end - begin < plan.run
            pl.when(few)(lambda: lax.fori_loop(begin, end, single, None))

        lax.fori_loop(0, _HALF // plan.run, step, None)


class _Rows(NamedTuple):
    """Those of a warpgroup in a tile."""

    block: _ThreadBlock
    warpgroup: Array
    tile: Tile
    before: Array
    """Slots of the ring used by the tiles before."""
    seen: tuple[Array, Array] | None
    """The first key that each row sees, and the one behind the last, if the plan is `ranged`."""

    @property
    def plan(self) -> Plan:
        return self.block.plan

    def nothing(self) -> _Softmax:
        peak = jnp.full((_HALF,), _LOWEST, jnp.float32)
        acc = jnp.zeros((_HALF, self.plan.out_width), jnp.float32)
        return _Softmax(peak, jnp.zeros_like(peak), acc)

    def attend(self) -> _Softmax:
        """The softmax-weighted sums over all blocks of keys of the tile."""
        state = self.nothing()
        plgpu.barrier_wait(self.block.q_full)
        if self.plan.overlap:
            return self.attend_overlapped(state)
        state = self.loops(self.tile.start, self.step, state)
        plgpu.barrier_arrive(self.block.q_free)
        return state

    def attend_overlapped(self, state: _Softmax) -> _Softmax:
        tile = self.tile
        state, weights, _ = self.absorb(self.multiply_keys(tile.start), state, tile.start, True)
        carry = state, weights.astype(self.block.ring.dtype)
        self.await_keys(tile.start + 1)
        state, weights = self.loops(tile.start + 1, self.overlapped, carry)
        plgpu.barrier_arrive(self.block.q_free)
        return self.multiply_values(state, weights, tile.stop - 1)

    def loops(self, first: Array, step: Callable[..., Any], carry: Any) -> Any:
        """All blocks from `first` on; only those in the middle need no mask."""
        tile = self.tile
        whole, whole_end = (jnp.maximum(x, first) for x in (tile.whole, tile.whole_end))
        masked = functools.partial(step, mask=True)
        if self.plan.window is not None or self.plan.ranged:
            carry = lax.fori_loop(first, whole, masked, carry)
        carry = lax.fori_loop(whole, whole_end, functools.partial(step, mask=False), carry)
        return lax.fori_loop(whole_end, tile.stop, masked, carry)

    def step(self, block: Array, state: _Softmax, *, mask: bool) -> _Softmax:
        scores = self.multiply_keys(block)
        state, weights, decay = self.absorb(scores, state, block, mask)
        state = state._replace(acc=state.acc * _columns(decay, state.acc))
        return self.multiply_values(state, weights.astype(self.block.ring.dtype), block)

    def overlapped(self, block: Array, carry: Any, *, mask: bool) -> Any:
        """Weights of the block before times its values, and the weights of this one."""
        held, (state, weights) = self.block, carry
        number = self.before + 2 * (block - self.tile.start)
        keys, values = held.slot(number - 1), held.slot(number)
        early = mask and self.plan.window is not None  # values that no one sees may come first
        if early:
            self.await_values(values, block - 1)

        def products(scores_acc: Any, acc: Any) -> Any:
            if not self.plan.interpret:
                acc[...] = state.acc
            self.start_keys(scores_acc, keys)
            if not early:
                plgpu.barrier_wait(held.full.at[values])
            self.start_values(acc, weights, values)
            scores = plgpu.wgmma_accumulator_load(scores_acc, wait_n=1)
            scores = lax.optimization_barrier(scores)
            plgpu.barrier_arrive(held.free.at[keys])
            result = lax.optimization_barrier(self.absorb(scores, state, block, mask))
            # the branch in it keeps ptxas from moving the softmax behind the products
            self.await_keys(block + 1)
            sums = plgpu.wgmma_accumulator_load(acc, wait_n=0)
            # rounding before the wait would make ptxas run wgmmas one after the other
            sums, (following, new, decay) = lax.optimization_barrier((sums, result))
            plgpu.barrier_arrive(held.free.at[values])
            sums = state.acc + sums if self.plan.interpret else sums
            following = following._replace(acc=sums * _columns(decay, sums))
            return following, new.astype(weights.dtype)

        accs = plgpu.ACC((_HALF, self.plan.keys)), plgpu.ACC(state.acc.shape)
        return pl.run_scoped(products, *accs)

    def await_keys(self, block: Array) -> None:
        """Waits for any block but the first, if the tile has so many."""
        number = self.before + 2 * (block - self.tile.start) - 1

        @pl.when(block < self.tile.stop)
        def _() -> None:
            plgpu.barrier_wait(self.block.full.at[self.block.slot(number)])

    def multiply_keys(self, block: Array) -> Float[Array, "64 K"]:
        held = self.block
        number = jnp.maximum(2 * (block - self.tile.start) - 1, 0)
        slot = held.slot(self.before + number)
        plgpu.barrier_wait(held.full.at[slot])

        def products(acc: Any) -> Array:
            self.start_keys(acc, slot)
            return acc[...]

        scores = pl.run_scoped(products, plgpu.ACC((_HALF, self.plan.keys)))
        plgpu.barrier_arrive(held.free.at[slot])
        return scores

    def multiply_values(self, state: _Softmax, weights: Array, block: Array) -> _Softmax:
        held, tile = self.block, self.tile
        number = 2 * (block - tile.start) + jnp.where(block + 1 == tile.stop, 1, 2)
        slot = held.slot(self.before + number)
        self.await_values(slot, block)

        def products(acc: Any) -> Array:
            if not self.plan.interpret:
                acc[...] = state.acc
            self.start_values(acc, weights, slot)
            return acc[...]

        sums = pl.run_scoped(products, plgpu.ACC(state.acc.shape))
        plgpu.barrier_arrive(held.free.at[slot])
        return state._replace(acc=state.acc + sums if self.plan.interpret else sums)

    def start_keys(self, acc: Any, slot: Array) -> None:
        queries, keys = self.block.q.at[self.warpgroup], self.block.ring.at[slot]
        plgpu.wgmma(acc, queries, keys.transpose((1, 0)))

    def start_values(self, acc: Any, weights: Array, slot: Array) -> None:
        plan, values = self.plan, self.block.ring.at[slot]
        acc = acc.at[:, : plan.width] if plan.width < plan.out_width else acc
        if plan.interpret:
            memory = self.block.weights.at[self.warpgroup]
            memory[...] = weights
            plgpu.commit_smem()
            weights = memory
        plgpu.wgmma(acc, weights, values)

    def await_values(self, slot: Array, block: Array) -> None:
        """Waits, and sees to it that values outside the row are no NaN: 0 * NaN is NaN."""
        held, keys = self.block, self.plan.keys
        plgpu.barrier_wait(held.full.at[slot])
        first, behind = self.tile.oldest - block * keys, self.tile.length - block * keys

        @pl.when((first > 0) | (behind < keys))
        def _() -> None:
            @pl.when(self.warpgroup == 0)
            def _() -> None:
                self.clear(held.ring.at[slot], first, behind)
                plgpu.barrier_arrive(held.cleared)

            pl.when(self.warpgroup == 1)(lambda: plgpu.barrier_wait(held.cleared))

    def clear(self, values: Any, first: Array, behind: Array) -> None:
        """Zeroes all but the tokens from `first` on, up to the one before `behind`."""
        columns = self.plan.swizzle // 2
        shape = _HALF, columns
        place = lax.broadcasted_iota(jnp.int32, shape, 0)

        def step(number: Array, carry: None) -> None:
            row = number * _HALF
            visible = (place >= first - row) & (place < behind - row)
            for column in range(0, self.plan.width, columns):
                part = values.at[pl.ds(row, _HALF), pl.ds(column, columns)]
                x = part[...]
                part[...] = jnp.where(visible, x, jnp.zeros_like(x))

        lax.fori_loop(0, self.plan.keys // _HALF, step, None)
        plgpu.commit_smem()

    def absorb(
        self, scores: Float[Array, "64 K"], state: _Softmax, block: Array, mask: bool
    ) -> tuple[_Softmax, Float[Array, "64 K"], Float[Array, " 64"]]:
        """The state but for `acc`, the block's weights, and the factor of what was summed before.

        Peaks are of `scores` as they come, so that a factor and a difference are one instruction.
        """
        plan = self.plan
        if plan.soft_cap is not None:  # the hardware's own tanh is good to three digits only
            power = jnp.exp2(scores * (2 * _LOG2_E * plan.scale / plan.soft_cap))
            scores = 1.0 - 2.0 / (1.0 + power)
        scores = self.masked(scores, block) if mask else scores
        factor = (plan.scale if plan.soft_cap is None else plan.soft_cap) * _LOG2_E
        # peaks are finite, so that weights of keys not seen are 0 even where no key was seen yet
        peak = jnp.maximum(state.peak, scores.max(axis=1))
        weights = jnp.exp2(scores * factor - _columns(peak * factor, scores))
        decay = jnp.exp2((state.peak - peak) * factor)
        return _Softmax(peak, state.total * decay + weights.sum(axis=1), state.acc), weights, decay

    def masked(self, scores: Float[Array, "64 K"], block: Array) -> Float[Array, "64 K"]:
        plan, tile = self.plan, self.tile
        key = block * plan.keys + lax.broadcasted_iota(jnp.int32, scores.shape, 1)
        if self.seen is not None:
            first, behind = (_columns(x, scores) for x in self.seen)
            return jnp.where((key >= first) & (key < behind), scores, -jnp.inf)
        row = self.warpgroup * _HALF + lax.broadcasted_iota(jnp.int32, scores.shape, 0)
        position = tile.token + tile.shift + (row & (plan.tokens - 1))
        visible = key <= position
        if plan.window is not None:
            visible &= key > position - plan.window
        return jnp.where(visible, scores, -jnp.inf)


def _columns(x: Shaped[Array, " 64"], like: Float[Array, "64 K"]) -> Shaped[Array, "64 K"]:
    return lax.broadcast_in_dim(x, like.shape, [0])
