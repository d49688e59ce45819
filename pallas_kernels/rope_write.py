"""Rotates the queries and keys of a step and writes its K and V into the pool, for Hopper GPUs.

`block_reference.rope_write` defines it: a Mosaic kernel that moves memory, with little arithmetic.
A block of threads serves KV heads of a token. It asks for all that it needs at once, straight
into registers, rotates there, and writes straight to where each vector belongs: shared memory would
be one more stop, and for few tokens its latency is what counts. The two halves of heads that are
rotated with one another are arrays of the same layout, so that pairs meet in one thread. The rows
of B that an update takes have that layout too, so that it is added up where it belongs.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from . import global_memory
from .block_reference import Update

_SMS = 132
"""Of an H100 or H200."""
_ELEMENTS = 8192
"""Of a block, at most: with the factors and what becomes of them they fill the registers."""
_UPDATED = 4096
"""Of a block with an update, at most: the registers must hold rows of B as well."""
_AHEAD = 24576
"""Elements of B that a block waits for at once. They take 96 registers of a thread."""
_UNROLLED = 16
"""Rows of B at most that are added up without a branch. At each some latency shows."""
_LANES, _WARPS = 32, 4
_VECTOR = 8
"""Elements of 16 bits that one instruction moves, at most."""


def rope_write(
    k_pool: Float[Array, "P S Hkv D"],
    v_pool: Float[Array, "P S Hkv D"],
    qkv: Float[Array, "T Hkv G+2 D"],
    cos: Float[Array, "T X/2"],
    sin: Float[Array, "T X/2"],
    index: Int[Array, " T"],
    update: Update | None = None,
    *,
    interpret: bool = False,
) -> tuple[Float[Array, "T Hkv*G D"], Float[Array, "P S Hkv D"], Float[Array, "P S Hkv D"]]:
    """`block_reference.rope_write` where qkv has the 16-bit type of the pools.

    The pools are written in place inside a jit that donates them. Of tokens with the same index
    parts of any may be kept. Needs jax 0.11.2, and D a multiple of 8.

    Args:
        cos, sin: in float32.
        update: of the type of qkv. Of B no more is read than the tokens' own slots.
        interpret: run on any device, slowly.
    """
    from jax.experimental.pallas import mosaic_gpu as plgpu  # slow to import, and new in jax 0.11

    tokens, kv_heads, vectors, width = qkv.shape
    elements = _ELEMENTS if update is None else _UPDATED
    block, heads = _block(tokens, kv_heads, vectors * width, elements)
    pools = [jax.new_ref(pool.reshape(-1, kv_heads, width)) for pool in (k_pool, v_pool)]

    def body(*refs: Any) -> None:
        at = pl.ds(lax.axis_index("heads") * heads, heads)
        kernel, first = _Kernel(plgpu, at, *refs), lax.axis_index("tokens") * block
        slots = [kernel.slots[first + n] for n in range(block)]
        writes = [kernel.read(first + n, slot) for n, slot in enumerate(slots)]
        for write in writes:
            write()

    run = plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct((tokens, kv_heads, vectors - 2, width), qkv.dtype),
        grid=(kv_heads // heads, tokens // block),  # only the last may be above 65535
        grid_names=("heads", "tokens"),
        # they protect shared memory, of which there is none
        compiler_params=plgpu.CompilerParams(unsafe_no_auto_barriers=True),
        interpret=plgpu.InterpretGPUParams(detect_races=True) if interpret else None,
        kernel_name="rope_write",
    )
    factors = cos, sin
    # twice: queries and keys want them in different layouts, and one load has only one
    if update is not None:
        update = update._replace(slots=update.slots.astype(jnp.int32))
    q = run(*pools, qkv, factors, factors, index.astype(jnp.int32), update)
    k_slots, v_slots = (jax.freeze(pool) for pool in pools)
    q = q.reshape(tokens, -1, width)
    return q, k_slots.reshape(k_pool.shape), v_slots.reshape(v_pool.shape)


def _block(tokens: int, kv_heads: int, size: int, elements: int) -> tuple[int, int]:
    """Tokens and KV heads of a thread block of so many elements, with `size` of a KV head.

    Heads are spread over all SMs, but in pairs at least: the fewer, the shorter the vectors that
    instructions move.
    """
    most = min(elements // size, max(pl.cdiv(tokens * kv_heads, _SMS), 2))
    divisors = (n for n in range(1, kv_heads + 1) if kv_heads % n == 0)
    return 1, max(n for n in divisors if n <= max(most, 1))


_Row = list[tuple[Array, Array]]
"""Arrays, each with its scalar weight."""


def weighted_sums(
    there: Array,
    like: list[Array],
    rank: int,
    ahead: int,
    ask: Callable[[Any], Callable[[int], _Row]],
) -> list[Array]:
    """Sums of weights times arrays over the rows 0 to `rank`, in float32, in a kernel.

    Args:
        there: if false the sums are zeros, and nothing is loaded.
        like: arrays of the shapes of the sums.
        ahead: rows that are waited for at once.
        ask: takes consecutive rows, and returns what loads one of them by its place.
    """
    count = max(n for n in range(1, min(rank, _UNROLLED) + 1) if rank % n == 0)

    def zeros() -> list[Array]:
        return [jnp.zeros(x.shape, jnp.float32) for x in like]

    def add(sums: list[Array], row: _Row) -> list[Array]:
        pairs = ([x.astype(jnp.float32) for x in pair] for pair in row)
        return [total + weight * x for total, (weight, x) in zip(sums, pairs, strict=True)]

    def step(n: Array, sums: list[Array]) -> list[Array]:
        load = ask(pl.ds(n * count, count))
        rows = [load(m) for m in range(min(ahead, count))]
        for m in range(count):
            sums = add(sums, rows[m])
            if len(rows) < count:
                rows.append(load(len(rows)))  # into the registers that are free by now
        return sums

    return lax.cond(there, lambda: lax.fori_loop(0, rank // count, step, zeros()), zeros)


class _Source(NamedTuple):
    """Columns of some vectors of each KV head."""

    part: int
    """Of an update."""
    vectors: Any
    columns: slice

    def of(self, ref: Any) -> Any:
        """Those of a token, or of a row of B."""
        return ref.at[:, self.vectors].at[..., self.columns]


class _Move(NamedTuple):
    sources: list[_Source]
    arrays: list[Array]
    """What was loaded from them."""
    write: Callable[[list[Array]], None]
    """Takes the arrays, updated."""


class _Kernel(NamedTuple):
    gpu: Any
    """The module of Mosaic."""
    heads: Any
    """The KV heads of this block."""
    k_slots: jax.Ref
    v_slots: jax.Ref
    qkv: jax.Ref
    q_factors: tuple[jax.Ref, jax.Ref]
    """cos and sin."""
    k_factors: tuple[jax.Ref, jax.Ref]
    slots: jax.Ref
    update: Any
    """References in place of its arrays, or None."""
    q: jax.Ref

    def read(self, token: Array, slot: Array) -> Callable[[], None]:
        """Asks for what a token needs, and returns what writes it once it is there."""
        groups, heads = self.q.shape[2], self.heads
        adapter = None if self.update is None else self.update.slots[token]
        q_factors, k_factors = (
            [ref.at[token] for ref in refs] for refs in (self.q_factors, self.k_factors)
        )
        moves = [
            *self.rotated(token, 0, slice(0, groups), self.q.at[token, heads], q_factors),
            *self.rotated(token, 1, groups, self.k_slots.at[slot, heads], k_factors),
            self.moved(token, 2, groups + 1, self.v_slots.at[slot, heads]),
        ]
        arrays = [move.arrays for move in moves]
        if adapter is not None:
            arrays = self.updated(token, adapter, moves)

        def write() -> None:
            for move, xs in zip(moves, arrays, strict=True):
                move.write(xs)

        return write

    def rotated(
        self, token: Array, part: int, vectors: Any, target: Any, factors: list[Any]
    ) -> list[_Move]:
        half = factors[0].shape[-1]
        sources = [_Source(part, vectors, slice(n * half, (n + 1) * half)) for n in range(2)]
        arrays = [self.load_source(token, source) for source in sources]
        shape = arrays[0].shape
        cos, sin = (self.load_factors(ref, shape) for ref in factors)

        def write(arrays: list[Array]) -> None:
            pair = [x.astype(jnp.float32) for x in arrays]
            c, s = (lax.broadcast_in_dim(f, shape, [len(shape) - 1]) for f in (cos, sin))
            turned = pair[0] * c - pair[1] * s, pair[1] * c + pair[0] * s
            for n, x in enumerate(turned):
                global_memory.store(
                    self.gpu, _columns(target, n * half, half), x.astype(target.dtype)
                )

        move = _Move(sources, arrays, write)
        if 2 * half == target.shape[-1]:
            return [move]
        return [move, self.moved(token, part, vectors, target, 2 * half)]

    def moved(self, token: Array, part: int, vectors: Any, target: Any, first: int = 0) -> _Move:
        """Of the columns from the first on."""
        width = target.shape[-1]
        source = _Source(part, vectors, slice(first, width))

        def write(arrays: list[Array]) -> None:
            columns = _columns(target, first, width - first)
            global_memory.store(self.gpu, columns, arrays[0].astype(target.dtype))

        return _Move([source], [self.load_source(token, source)], write)

    def updated(self, token: Array, adapter: Array, moves: list[_Move]) -> list[list[Array]]:
        """The arrays of the moves in float32, with the update of the token's adapter."""
        h, b = self.update.h, self.update.b
        slots, rank, _, vectors, width = b.shape

        def ask(rows: Any) -> Callable[[int], _Row]:
            weights = [h.at[token, part, adapter, rows] for part in range(3)]
            block = b.at[adapter, rows, self.heads]
            sources = [source for move in moves for source in move.sources]

            def load(n: int) -> _Row:
                own = [part[n] for part in weights]
                return [(own[source.part], self.load(source.of(block.at[n]))) for source in sources]

            return load

        ahead = max(_AHEAD // (self.heads.size * vectors * width), 1)
        arrays = [x for move in moves for x in move.arrays]
        sums = weighted_sums(adapter < slots, arrays, rank, ahead, ask)
        exact = (x.astype(jnp.float32) + added for x, added in zip(arrays, sums, strict=True))
        return [[next(exact) for _ in move.arrays] for move in moves]

    def load_source(self, token: Array, source: _Source) -> Array:
        return self.load(source.of(self.qkv.at[token, self.heads]))

    def load(self, ref: Any) -> Array:
        return global_memory.load(self.gpu, ref, _layout(self.gpu, ref.shape))

    def load_factors(self, ref: Any, shape: tuple[int, ...]) -> Array:
        """Those of a row, in the threads where an array of this shape has their columns."""
        layout = _layout(self.gpu, shape).reduce(tuple(range(len(shape) - 1)))
        return global_memory.load(self.gpu, ref, layout)


def _columns(ref: Any, first: int, count: int) -> Any:
    return ref.at[(slice(None),) * (len(ref.shape) - 1) + (slice(first, first + count),)]


def _layout(gpu: Any, shape: tuple[int, ...]) -> Any:
    """Deals an array out to the threads of a warpgroup, in vectors as long as leave none idle.

    Neighbours in a warp hold neighbours in a row, so that accesses are of whole sectors.
    """
    from jax.experimental.mosaic.gpu import fragmented_array as mosaic

    rank, powers = len(shape), [n & -n for n in shape]  # what can be cut in halves
    vector = min(_VECTOR, powers[-1], max(math.prod(powers) // (_LANES * _WARPS), 1))
    powers[-1] //= vector
    lanes, warps, lanes_left, warps_left = [1] * rank, [1] * rank, _LANES, _WARPS
    for n in reversed(range(rank)):
        lanes[n] = min(powers[n], lanes_left)
        warps[n] = min(powers[n] // lanes[n], warps_left)
        lanes_left, warps_left = lanes_left // lanes[n], warps_left // warps[n]
    warp_tile = [*lanes[:-1], lanes[-1] * vector]
    tiles = [n * m for n, m in zip(warps, warp_tile, strict=True)], warp_tile, [vector]
    copies = [(mosaic.Replicated(n),) if n > 1 else () for n in (warps_left, lanes_left)]
    layout = mosaic.TiledLayout(
        mosaic.Tiling(tuple(map(tuple, tiles))),
        (*range(-2 * rank - 1, -rank - 1), *copies[0]),
        (*range(-rank - 1, -1), *copies[1]),
        vector_dim=-1,
        _check_canonical=False,
    ).canonicalize()
    return gpu.Layout.TILED(layout.tiling, layout.warp_dims, layout.lane_dims, layout.vector_dim)
