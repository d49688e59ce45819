"""Attention of one query per row over a pool of KV pages, for Hopper GPUs: Pallas Mosaic GPU.

`reference.paged_decode` defines it. Reading K and V is all the work there is, so the memory must
never idle: each thread block lives as long as the kernel, and one of its warps streams pages into
a ring in shared memory, across the borders of the pieces of work, while a warpgroup computes. A
second kernel combines the pieces of each row.

A piece of work is a split of a row (`decode_splits`) for a *bundle* of KV heads, neighbours in
memory, so that one copy of a page is long. Scores are taken transposed, tokens x queries, since
tensor cores want 64 rows on that side and only 8 columns on the other. Each head of a bundle is
multiplied with the queries of all of them, which fill the 8 columns, and each column keeps the
scores of its head.

Letters as in `reference`; B bundles, N the query heads of one in T tiles of 8, I splits, K tokens
of a block.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from . import global_memory
from .decode_splits import BLOCK, Splits, splits

_CORES = 132
"""Thread blocks: the multiprocessors of an H100 or H200."""
_WIDEST = 256
"""Of a bundle: K and V of a block are 32 KiB each then."""
_COLUMNS = 16
"""Query heads of a bundle, at most."""
_SHARED_BYTES = 227 * 1024
_LOWEST = -1e30
_LOG2_E = math.log2(math.e)


class _Plan(NamedTuple):
    """What is fixed when the kernels are traced."""

    rows: int
    kv_heads: int
    groups: int
    width: int
    page: int
    scale: float
    soft_cap: float | None
    cores: int

    @property
    def chunk(self) -> int:
        """Tokens of one copy."""
        return min(self.page, BLOCK)

    @property
    def copies(self) -> int:
        """Of a block."""
        return BLOCK // self.chunk

    @property
    def bundle(self) -> int:
        """KV heads that are read together."""
        fit = min(_WIDEST // self.width, _COLUMNS // self.groups) if self.width % 64 == 0 else 1
        return max(n for n in (1, 2, 4) if n == 1 or (n <= fit and self.kv_heads % n == 0))

    @property
    def bundles(self) -> int:
        return self.kv_heads // self.bundle

    @property
    def tiles(self) -> int:
        """Of 8 columns, the fewest that tensor cores take, for the queries of a bundle."""
        return pl.cdiv(self.bundle * self.groups, 8)

    @property
    def columns(self) -> int:
        """N."""
        return self.tiles * 8

    @property
    def filled(self) -> int:
        """Columns of each tile that hold a query."""
        return pl.cdiv(self.bundle * self.groups, self.tiles)

    @property
    def padded(self) -> int:
        """Head size in shared memory, a multiple of the 64 rows that tensor cores take."""
        return pl.cdiv(self.width, 64) * 64

    @property
    def stages(self) -> int:
        """Blocks of K, and as many of V, that fit beside two tiles of queries and the weights."""
        room = _SHARED_BYTES - self.columns * (4 * self.padded + 2 * BLOCK) - 8192
        return room // (4 * BLOCK * self.bundle * self.padded)

    @property
    def at_once(self) -> int:
        """Splits of a row that are combined at once: fewer registers where blocks must share."""
        registers = 64 if self.rows * self.bundles <= self.cores else 32
        return min(max(registers * 128 // (self.padded * self.columns), 1), 8)


def paged_decode(
    q: Float[Array, "R Hq D"],
    k_pool: Float[Array, "P S Hkv D"],
    v_pool: Float[Array, "P S Hkv D"],
    page_table: Int[Array, "R M"],
    lengths: Int[Array, " R"],
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    split_tokens: int | None = None,
    cores: int = _CORES,
    interpret: bool = False,
) -> Float[Array, "R Hq D"]:
    """`reference.paged_decode` for 16-bit pools, D a multiple of 32, S a power of two from 8 on.

    Products are of the pool's type, accumulated in float32. Needs jax 0.11.2.

    Args:
        split_tokens: of every split, in place of a choice by the shapes.
        cores: thread blocks that read.
        interpret: run on any device, slowly.

    The other arguments and the result are those of `reference.paged_decode`.
    """
    rows, heads, width = q.shape
    _, page, kv_heads, _ = k_pool.shape
    plan = _Plan(rows, kv_heads, heads // kv_heads, width, page, scale, soft_cap, cores)
    k, v = (x.reshape(*x.shape[:2], plan.bundles, -1) for x in (k_pool, v_pool))
    queries = q.astype(k.dtype).reshape(rows, plan.bundles, -1, width)
    missing = plan.tiles * plan.filled - queries.shape[2]
    # a copy, but only of an odd number of heads above 8
    queries = jnp.pad(queries, [(0, 0), (0, 0), (0, missing), (0, 0)])
    queries = queries.reshape(rows, plan.bundles, plan.tiles, plan.filled, width)
    cut = {"page": page, "window": window, "bundles": plan.bundles, "cores": cores}
    work = splits(page_table, lengths, **cut, split_tokens=split_tokens)
    means, logs = _attend(plan, queries, k, v, page_table, work, interpret)
    out = _combine(plan, means, logs, work, q.dtype, interpret)
    out = out.reshape(rows, plan.bundles, -1, width)
    return out[:, :, : heads // plan.bundles].reshape(q.shape)


def _tiled(shape: tuple[int, ...], dtype: Any, width: int) -> Any:
    """Shared memory in the tiles that tensor cores read; copies of a head end at a tile's edge."""
    size = jnp.dtype(dtype).itemsize
    minor = math.gcd(width, 128 // size)
    transforms = (plgpu.TilingTransform((8, minor)), plgpu.SwizzleTransform(minor * size))
    return plgpu.SMEM(shape, dtype, transforms=transforms)


def _box(ref: jax.Ref, index: tuple[Any, ...], shape: tuple[int, ...], zero: Array) -> Any:
    """ref[index], of this shape: a copy fills with zeros, or leaves out, what is not in ref.

    Tracing must not see that `zero` is that; it refuses such slices.
    """
    zero *= 128  # a proof that it is divisible by every tile
    have = ref.shape[len(index) :]
    box = (slice(None) if n == m else pl.ds(zero, n) for n, m in zip(shape, have, strict=True))
    return ref.at[*index, *box]


def _kernel(name: str, body: Callable[..., None], interpret: bool, **options: Any) -> Any:
    return plgpu.kernel(
        body,
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=plgpu.InterpretGPUParams(detect_races=True) if interpret else None,
        kernel_name=name,
        **options,
    )


class _Ring(NamedTuple):
    """Slots in shared memory, and for each the signals that it is full and that it is free."""

    slots: Any
    full: Any
    free: Any


def _ring(slots: Any, copies: int) -> _Ring:
    count = slots.shape[0]
    full = plgpu.Barrier(num_arrivals=copies, num_barriers=count)
    return _Ring(slots, full, plgpu.Barrier(num_barriers=count))


def _attend(
    plan: _Plan,
    q: Float[Array, "R B T 8 D"],
    k: Float[Array, "P S B W"],
    v: Float[Array, "P S B W"],
    page_table: Int[Array, "R M"],
    work: Splits,
    interpret: bool,
) -> tuple[Float[Array, "I B D N"], Float[Array, "I B N"]]:
    """The means of all splits and their weights, as logarithms to base 2.

    They are arbitrary where there is no such split.
    """
    shape, mean = (work.items.shape[0], plan.bundles), (plan.padded, plan.columns)
    queries = _tiled((2, plan.columns, plan.padded), k.dtype, plan.width)
    blocks = _tiled((plan.stages, BLOCK, plan.bundle * plan.padded), k.dtype, plan.width)
    weights = _tiled((plan.columns, BLOCK), k.dtype, plan.width)
    run = _kernel(
        "paged_decode",
        lambda *refs: _ThreadBlock(plan, *refs).run(),
        interpret,
        out_type=[jax.ShapeDtypeStruct(shape + end, jnp.float32) for end in (mean, mean[1:])],
        scratch_types=[_ring(queries, plan.tiles), *[_ring(blocks, plan.copies)] * 2, weights],
        grid=(plan.cores,),
        grid_names=("block",),
        num_threads=2,
        thread_name="warpgroup",
    )
    return run(q, k, v, page_table, work.items, work.starts)


class _Piece(NamedTuple):
    """A split of a row for one bundle. Scalars."""

    number: Array  # among those of its thread block
    before: Array  # blocks of the pieces before it
    item: Array
    bundle: Array
    row: Array
    begin: Array
    end: Array
    first: Array  # where its first block begins
    blocks: Array
    pages: list[Array]  # of its first block


class _Softmax(NamedTuple):
    """The softmax-weighted sums in progress of the queries of a piece. Exponents are to base 2."""

    peak: Float[Array, " N"]
    total: Float[Array, "K N"]
    """Of each place in a block by itself, to be summed once at the end."""
    acc: Float[Array, "D N"]


class _ThreadBlock(NamedTuple):
    plan: _Plan
    q_ref: jax.Ref
    k_ref: jax.Ref
    v_ref: jax.Ref
    page_table: jax.Ref
    items: jax.Ref
    starts: jax.Ref
    means: jax.Ref
    logs: jax.Ref
    q: _Ring
    k: _Ring
    v: _Ring
    weights: Any

    def run(self) -> None:
        frees = [ring.free for ring in (self.q, self.k, self.v)]
        frees = [free.at[i] for free in frees for i in range(free.shape[0])]

        def copy(warp: Array) -> None:
            @pl.when(warp == 0)
            def _() -> None:
                self.each_piece(self.load)
                for free in frees:  # the interpreter wants every signal seen
                    plgpu.barrier_wait(free)

        def compute() -> None:
            for free in frees:
                plgpu.barrier_arrive(free)
            self.each_piece(self.compute)

        warpgroup = lax.axis_index("warpgroup")
        pl.when(warpgroup == 0)(compute)
        # one warp, since every thread of a copying group signals each copy
        pl.when(warpgroup == 1)(lambda: plgpu.warp_map(copy))

    def each_piece(self, body: Callable[[_Piece], None]) -> None:
        """Deals the pieces, which get smaller, in turns: one from the left, one from the right."""
        plan, last = self.plan, self.items.shape[0] * self.plan.bundles - 1
        block, cores = lax.axis_index("block"), plan.cores

        def place(i: Array) -> Array:
            return i * cores + jnp.where(lax.rem(i, 2) == 0, block, cores - 1 - block)

        def fields(i: Array) -> list[Array]:
            item = lax.div(jnp.minimum(place(i), last), plan.bundles)
            return [self.items[item, n] for n in range(3 + plan.copies)]

        def step(i: Array, carry: tuple[Array, list[Array]]) -> tuple[Array, list[Array]]:
            before, (row, begin, end, *pages) = carry
            following = fields(i + 1)  # so early that its latency hides behind the work
            # the bundles of the same pages go to neighbours at the same time
            item, bundle = lax.div(place(i), plan.bundles), lax.rem(place(i), plan.bundles)
            first = begin - lax.rem(begin, plan.chunk)
            blocks = lax.div(end - first + (BLOCK - 1), BLOCK)
            body(_Piece(i, before, item, bundle, row, begin, end, first, blocks, pages))
            return before + blocks, following

        total = self.starts[plan.rows] * plan.bundles
        whole = lax.div(total, cores)
        count = whole + (place(whole) < total).astype(jnp.int32)
        lax.fori_loop(0, count, step, (jnp.int32(0), fields(jnp.int32(0))))

    def load(self, piece: _Piece) -> None:
        """Copies the queries and the pages of a piece, as the rings have room."""
        plan, at, zero = self.plan, lax.rem(piece.number, 2), jnp.minimum(piece.number, 0)
        plgpu.barrier_wait(self.q.free.at[at])
        for n in range(plan.tiles):
            source = _box(self.q_ref, (piece.row, piece.bundle, n), (8, plan.padded), zero)
            target = self.q.slots.at[at, pl.ds(8 * n, 8)]
            plgpu.copy_gmem_to_smem(source, target, self.q.full.at[at])
        # behind the end of the row any page will do: nothing of it is visible
        last = lax.div(jnp.maximum(piece.end - 1, 0), plan.page)

        def step(block: Array, pages: list[Array]) -> list[Array]:
            token = piece.first + block * BLOCK
            column = lax.div(token + BLOCK, plan.page)
            columns = [jnp.minimum(column + n, last) for n in range(plan.copies)]
            following = [self.page_table[piece.row, column] for column in columns]
            part = lax.rem(lax.div(token, BLOCK), pl.cdiv(plan.page, BLOCK))
            tokens = pl.ds(BLOCK * part, BLOCK) if plan.page > BLOCK else slice(None)
            slot = lax.rem(piece.before + block, plan.stages)
            for ref, (slots, full, free) in ((self.k_ref, self.k), (self.v_ref, self.v)):
                plgpu.barrier_wait(free.at[slot])
                for n, page in enumerate(pages):
                    source = _box(ref, (page, tokens, piece.bundle), slots.shape[2:], zero)
                    target = slots.at[slot, pl.ds(n * plan.chunk, plan.chunk)]
                    plgpu.copy_gmem_to_smem(source, target, full.at[slot])
            return following

        lax.fori_loop(0, piece.blocks, step, piece.pages)

    def compute(self, piece: _Piece) -> None:
        """Writes the mean of a piece and its weight."""
        plan, at = self.plan, lax.rem(piece.number, 2)
        plgpu.barrier_wait(self.q.full.at[at])
        state = _Softmax(
            jnp.full((plan.columns,), _LOWEST, jnp.float32),
            jnp.zeros((BLOCK, plan.columns), jnp.float32),
            jnp.zeros((plan.padded, plan.columns), jnp.float32),
        )

        def step(block: Array, state: _Softmax) -> _Softmax:
            slot = lax.rem(piece.before + block, plan.stages)
            first = piece.first + block * BLOCK
            return self.absorb(state, at, slot, piece.begin - first, piece.end - first)

        state = lax.fori_loop(0, piece.blocks, step, state)
        plgpu.barrier_arrive(self.q.free.at[at])
        total = state.total.sum(axis=0)
        place, mean = (piece.item, piece.bundle), state.acc / _rows(total, state.acc)
        global_memory.store(plgpu, self.means.at[place], mean)
        global_memory.store(plgpu, self.logs.at[place], state.peak + jnp.log2(total))

    def absorb(self, state: _Softmax, at: Array, slot: Array, begin: Array, end: Array) -> _Softmax:
        """Adds a block, of which the tokens begin to end - 1 are visible: at least one."""
        plan, keys, values = self.plan, self.k.slots.at[slot], self.v.slots.at[slot]
        heads = [pl.ds(n * plan.padded, plan.padded) for n in range(plan.bundle)]
        plgpu.barrier_wait(self.k.full.at[slot])
        queries = self.q.slots.at[at].transpose((1, 0))
        scores = self.own(_products([keys.at[:, head] for head in heads], queries))
        plgpu.barrier_arrive(self.k.free.at[slot])
        if plan.soft_cap is None:
            scores *= plan.scale * _LOG2_E
        else:
            scores = plan.soft_cap * _LOG2_E * jnp.tanh(scores * (plan.scale / plan.soft_cap))
        scores = jnp.where(_visible(scores.shape, begin, end), scores, _LOWEST)
        peak = jnp.maximum(state.peak, scores.max(axis=0))
        weights = jnp.exp2(scores - _rows(peak, scores))
        decay = jnp.exp2(state.peak - peak)
        total = state.total * _rows(decay, state.total) + weights
        self.weights.transpose((1, 0))[...] = weights.astype(self.weights.dtype)
        plgpu.commit_smem()
        plgpu.barrier_wait(self.v.full.at[slot])
        pl.when((begin > 0) | (end < BLOCK))(lambda: self.hide(values, begin, end))
        turned = [values.at[:, head].transpose((1, 0)) for head in heads]
        update = self.own(_products(turned, self.weights.transpose((1, 0))))
        plgpu.barrier_arrive(self.v.free.at[slot])
        return _Softmax(peak, total, state.acc * _rows(decay, state.acc) + update)

    def own(self, heads: list[Float[Array, "K N"]]) -> Float[Array, "K N"]:
        """Of the products of all KV heads of a bundle, in each column that of its own head."""
        plan, (out, *others) = self.plan, heads
        column = lax.broadcasted_iota(jnp.int32, out.shape, 1)
        for n, other in enumerate(others, 1):
            tile, place = divmod(n * plan.groups, plan.filled)
            out = jnp.where(column >= tile * 8 + place, other, out)
        return out

    def hide(self, values: Any, begin: Array, end: Array) -> None:
        """Zeros what is not visible: it may be NaN, and 0 * NaN is NaN."""
        minor = math.gcd(self.plan.width, 64)

        def step(n: Array, carry: None) -> None:
            tile = values.at[:, pl.ds(n * minor, minor)]
            x = tile[...]
            tile[...] = jnp.where(_visible(x.shape, begin, end), x, jnp.zeros_like(x))

        lax.fori_loop(0, values.shape[1] // minor, step, None)
        plgpu.commit_smem()


def _visible(shape: tuple[int, ...], begin: Array, end: Array) -> Array:
    token = lax.broadcasted_iota(jnp.int32, shape, 0)
    return (token >= begin) & (token < end)


def _rows(x: Float[Array, " N"], like: Float[Array, "K N"]) -> Float[Array, "K N"]:
    return lax.broadcast_in_dim(x, like.shape, [1])


def _products(lefts: list[Any], right: Any) -> list[Array]:
    """All are under way before the first is waited for."""

    def multiply(*accs: Any) -> list[Array]:
        for acc, left in zip(accs, lefts, strict=True):
            plgpu.wgmma(acc, left, right)
        return [acc[...] for acc in accs]

    accs = [plgpu.ACC((left.shape[0], right.shape[1]), jnp.float32) for left in lefts]
    return pl.run_scoped(multiply, *accs)


def _combine(
    plan: _Plan,
    means: Float[Array, "I B D N"],
    logs: Float[Array, "I B N"],
    work: Splits,
    dtype: Any,
    interpret: bool,
) -> Float[Array, "R B T 8 D"]:
    """The means of rows: few bytes, so what matters is that all loads are under way at once."""
    shape = plan.rows, plan.bundles, plan.tiles, plan.filled, plan.width
    run = _kernel(
        "paged_decode_combine",
        functools.partial(_combine_kernel, plan),
        interpret,
        out_type=jax.ShapeDtypeStruct(shape, dtype),
        scratch_types=[_tiled((plan.columns, plan.padded), dtype, plan.width)],
        grid=(plan.rows, plan.bundles),
        grid_names=("row", "bundle"),
    )
    return run(means, logs, work.starts, work.counts)


def _combine_kernel(plan: _Plan, *refs: Any) -> None:
    """One bundle of one row; a row without splits is the mean of zeros."""
    means, logs, starts, counts, out_ref, out = refs
    row, bundle = lax.axis_index("row"), lax.axis_index("bundle")
    first, count = starts[row], counts[row]

    def load(ref: jax.Ref, number: Array) -> Array:
        # a split that does not exist is the last one once more, from the cache
        item = first + jnp.minimum(number, count - 1)
        return global_memory.load(plgpu, ref.at[item, bundle])

    def step(i: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        peak, total, acc = state
        numbers = [i * plan.at_once + n for n in range(plan.at_once)]
        parts = [load(means, number) for number in numbers]
        weights = [load(logs, n) + jnp.where(n < count, 0.0, _LOWEST) for n in numbers]
        top = functools.reduce(jnp.maximum, weights, peak)
        decay = jnp.exp2(peak - top)
        total, acc = total * decay, acc * _rows(decay, acc)
        for log, part in zip(weights, parts, strict=True):
            weight = jnp.exp2(log - top)
            total, acc = total + weight, acc + part * _rows(weight, part)
        return top, total, acc

    zeros = jnp.zeros((plan.columns,), jnp.float32)
    state = zeros + _LOWEST, zeros, jnp.zeros((plan.padded, plan.columns), jnp.float32)
    steps = lax.div(count + (plan.at_once - 1), plan.at_once)
    _, total, acc = lax.fori_loop(0, steps, step, state)
    mean = acc / _rows(jnp.where(total > 0, total, 1.0), acc)
    out.transpose((1, 0))[...] = mean.astype(out.dtype)
    plgpu.commit_smem()
    for n in range(plan.tiles):
        target = _box(out_ref, (row, bundle, n), (8, plan.padded), jnp.minimum(row, 0))
        plgpu.copy_smem_to_gmem(out.at[pl.ds(8 * n, 8)], target)
    plgpu.wait_smem_to_gmem(0)
