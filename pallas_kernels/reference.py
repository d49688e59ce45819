"""Attention over a pool of KV pages in plain `jnp`. These functions define the kernels.

The two that attend are the online softmax of FlashAttention (arXiv:2205.14135), blockwise over the
pages of a row, so that temporaries depend neither on the pool nor on the context. Letters: R rows,
T query tokens, P pages in the pool, S tokens per page, M pages per row, Hq query heads, Hkv KV
heads, D head size, K tokens of a block of keys, N queries of one KV head in a tile.

What the pool holds outside the first `lengths[r]` tokens of a row never reaches the result, not
even where it is NaN.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

_SMALLEST_TILE = 64
_TILES = 16
"""Tiles a long prefill is cut into, one after the other; on a GPU each costs its launches."""
_DECODE_KEYS = 128
_DECODE_TOKENS = 16384
"""Keys of all rows together that a step of decode gathers, unless one page each is more."""
_LOWEST = -1e30


class _Softmax(NamedTuple):
    """A softmax-weighted sum in progress, for every KV head and query. All float32."""

    peak: Float[Array, "Hkv N"]
    total: Float[Array, "Hkv N"]
    acc: Float[Array, "Hkv N D"]

    @classmethod
    def start(cls, q: Float[Array, "*R Hkv N D"]) -> "_Softmax":
        zeros = jnp.zeros(q.shape, jnp.float32)
        return cls(jnp.full(q.shape[:-1], _LOWEST), zeros[..., 0], zeros)

    def result(self) -> Float[Array, "*R Hkv N D"]:
        """The weighted mean; 0 where nothing was visible."""
        return self.acc / jnp.where(self.total > 0, self.total, 1.0)[..., None]


def dot(spec: str, a: Array, b: Array) -> Array:
    """A product in float32, as `jnp.einsum` has it, exact for float32."""
    exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.einsum(spec, a, b, precision=exact, preferred_element_type=jnp.float32)


def _absorb(
    state: _Softmax,
    q: Float[Array, "Hkv N D"],
    k: Float[Array, "K Hkv D"],
    v: Float[Array, "K Hkv D"],
    visible: Bool[Array, "N K"],
    scale: float,
    soft_cap: float | None,
) -> _Softmax:
    """Adds one block of keys and values to the softmax of every query that sees them.

    Products are of the type of q, accumulated in float32.
    """
    k, v = k.astype(q.dtype), v.astype(q.dtype)
    scores = dot("hnd,khd->hnk", q, k) * scale
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    scores = jnp.where(visible[None], scores, _LOWEST)
    peak = jnp.maximum(state.peak, scores.max(axis=-1))
    weights = jnp.where(visible[None], jnp.exp(scores - peak[..., None]), 0.0)
    # 0 * NaN is NaN, so values nobody sees must be zero themselves
    v = jnp.where(visible.any(axis=0)[:, None, None], v, jnp.zeros_like(v))
    decay = jnp.exp(state.peak - peak)
    total = state.total * decay + weights.sum(axis=-1)
    acc = state.acc * decay[..., None] + dot("hnk,khd->hnd", weights.astype(v.dtype), v)
    return _Softmax(peak, total, acc)


def _gather(
    pool: Float[Array, "P S Hkv D"], row: Int[Array, " M"], block: Int[Array, ""], pages: int
) -> Float[Array, "K Hkv D"]:
    """Block number `block`, of `pages` pages; what lies behind the row's end is arbitrary."""
    columns = jnp.minimum(block * pages + jnp.arange(pages), row.shape[0] - 1)
    return pool[row[columns]].reshape(-1, *pool.shape[2:])


def kv_write(
    k_pool: Float[Array, "P S Hkv D"],
    v_pool: Float[Array, "P S Hkv D"],
    k: Float[Array, "T Hkv D"],
    v: Float[Array, "T Hkv D"],
    index: Int[Array, " T"],
) -> tuple[Float[Array, "P S Hkv D"], Float[Array, "P S Hkv D"]]:
    """The pools with k and v, in the pools' type, at the token slots `index` (page * S + offset).

    Slots of the null page may occur more than once: then one of their tokens stays.
    """
    return _write(k_pool, k, index), _write(v_pool, v, index)


def _write(
    pool: Float[Array, "P S Hkv D"], rows: Float[Array, "T Hkv D"], index: Int[Array, " T"]
) -> Float[Array, "P S Hkv D"]:
    slots = pool.reshape(-1, *pool.shape[2:])
    slots = slots.at[index].set(rows.astype(pool.dtype), mode="promise_in_bounds")
    return slots.reshape(pool.shape)


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
) -> Float[Array, "R Hq D"]:
    """One query per row, at position lengths[r] - 1, over the row's tokens.

    Args:
        q: query head h uses KV head h // (Hq / Hkv).
        page_table: the pages of each row in order; entries behind its length are any valid page.
        lengths: tokens of each row in the pool; 0 gives a row of zeros.
        scale: factor of the products of queries and keys.
        window: a query sees this many keys, itself included; None is all of them.
        soft_cap: scores become soft_cap * tanh(score / soft_cap); None leaves them.

    The cost depends on the longest row, not on M.
    """
    pages = max(1, min(_DECODE_KEYS, _DECODE_TOKENS // q.shape[0]) // k_pool.shape[1])
    size = pages * k_pool.shape[1]
    start = jnp.maximum(lengths - (window or lengths), 0)
    first = start // size
    trips = jnp.max(-(-lengths // size) - first)
    queries = q.astype(jnp.float32).reshape(q.shape[0], k_pool.shape[2], -1, q.shape[2])

    def absorb_row(
        state: _Softmax, query: Array, row: Array, block: Array, start: Array, length: Array
    ) -> _Softmax:
        positions = block * size + jnp.arange(size)
        visible = (positions >= start) & (positions < length)
        visible = jnp.broadcast_to(visible[None], (query.shape[1], size))
        k, v = (_gather(pool, row, block, pages) for pool in (k_pool, v_pool))
        return _absorb(state, query, k, v, visible, scale, soft_cap)

    def step(carry: tuple[Array, _Softmax]) -> tuple[Array, _Softmax]:
        i, state = carry
        blocks = first + i
        return i + 1, jax.vmap(absorb_row)(state, queries, page_table, blocks, start, lengths)

    carry = (jnp.zeros((), trips.dtype), _Softmax.start(queries))
    _, state = jax.lax.while_loop(lambda carry: carry[0] < trips, step, carry)
    return state.result().reshape(q.shape).astype(q.dtype)


class _Rows(NamedTuple):
    """The ragged rows of a step; fields as in `paged_prefill`."""

    page_table: Int[Array, "R M"]
    lengths: Int[Array, " R"]
    query_starts: Int[Array, " R+1"]

    @property
    def counts(self) -> Int[Array, " R"]:
        """Queries of each row."""
        return self.query_starts[1:] - self.query_starts[:-1]

    def of(self, tokens: Int[Array, " N"]) -> Int[Array, " N"]:
        """The row of each query token; R for padding."""
        rows = jnp.searchsorted(self.query_starts[1:], tokens, side="right")
        return rows.astype(tokens.dtype)

    def next_wanted(self, skip: Bool[Array, " R"] | None) -> Int[Array, " R+1"]:
        """For each row, the first one from there on with a query, skipped ones aside; R is none."""
        count = self.lengths.shape[0]
        rows = jnp.arange(count + 1, dtype=self.lengths.dtype)
        wanted = self.counts > 0 if skip is None else (self.counts > 0) & ~skip
        return jax.lax.cummin(jnp.where(jnp.append(wanted, True), rows, count), reverse=True)


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
) -> Float[Array, "T Hq D"]:
    """Causal attention of ragged rows: the newest tokens of each row over all of its tokens.

    Row r owns the queries query_starts[r] to query_starts[r + 1]; the last of them stands at
    position lengths[r] - 1. Queries behind query_starts[R] are padding and give zeros. They go in
    tiles, one after the other, each over the blocks of keys it can see.

    Args:
        skip: rows to leave out; their results are undefined.

    The other arguments are those of `paged_decode`.
    """
    rows = _Rows(page_table, lengths, query_starts)
    options = _Options(scale, window, soft_cap)
    tile = min(max(_SMALLEST_TILE, q.shape[0] // _TILES), q.shape[0])
    padding = -q.shape[0] % tile
    queries = jnp.pad(q, ((0, padding), (0, 0), (0, 0))).reshape(-1, tile, *q.shape[1:])
    tokens = jnp.arange(q.shape[0] + padding, dtype=lengths.dtype).reshape(-1, tile)
    attend = functools.partial(_attend_tile, rows, rows.next_wanted(skip), k_pool, v_pool, options)
    out = jax.lax.map(lambda args: attend(*args), (queries, tokens))
    return out.reshape(-1, *q.shape[1:])[: q.shape[0]]


class _Options(NamedTuple):
    scale: float
    window: int | None
    soft_cap: float | None


def _attend_tile(
    rows: _Rows,
    next_wanted: Int[Array, " R+1"],
    k_pool: Float[Array, "P S Hkv D"],
    v_pool: Float[Array, "P S Hkv D"],
    options: _Options,
    queries: Float[Array, "N Hq D"],
    tokens: Int[Array, " N"],
) -> Float[Array, "N Hq D"]:
    """One tile of queries over the pairs of row and key block that it can see."""
    pages = max(1, max(_SMALLEST_TILE, tokens.shape[0]) // k_pool.shape[1])
    size = pages * k_pool.shape[1]
    tile = _Tile.of(tokens, rows)
    count, heads, width = queries.shape
    groups = heads // k_pool.shape[2]
    # [N, Hkv, G, D] to [Hkv, N * G, D]: the queries that share a KV head are one matrix
    q = queries.reshape(count, -1, groups, width).swapaxes(0, 1).reshape(-1, count * groups, width)

    def step(carry: tuple[Array, Array, _Softmax]) -> tuple[Array, Array, _Softmax]:
        row, block, state = carry
        visible = tile.sees(row, block * size + jnp.arange(size), options.window)
        visible = jnp.repeat(visible, groups, axis=0)
        table = rows.page_table[row]
        k, v = (_gather(pool, table, block, pages) for pool in (k_pool, v_pool))
        state = _absorb(state, q, k, v, visible, options.scale, options.soft_cap)
        done = (block + 1) * size > tile.latest(row)
        following = next_wanted[row + 1]
        first = tile.earliest(following, options.window) // size
        return jnp.where(done, following, row), jnp.where(done, first, block + 1), state

    row = next_wanted[tile.rows[0]]
    carry = (row, tile.earliest(row, options.window) // size, _Softmax.start(q))
    _, _, state = jax.lax.while_loop(lambda carry: carry[0] <= tile.last_row, step, carry)
    out = state.result().reshape(-1, count, groups, width).swapaxes(0, 1)
    return out.reshape(queries.shape).astype(queries.dtype)


class _Tile(NamedTuple):
    """Consecutive query tokens and where they stand in their rows."""

    tokens: Int[Array, " N"]
    rows: Int[Array, " N"]
    """R for padding."""
    positions: Int[Array, " N"]
    last_row: Int[Array, ""]
    """The last row with a query in the tile; -1 where it holds padding only."""
    starts: Int[Array, " R+1"]
    shifts: Int[Array, " R"]
    """Position of a row's query less its token number."""

    @classmethod
    def of(cls, tokens: Int[Array, " N"], rows: _Rows) -> "_Tile":
        row = rows.of(tokens)
        count = jnp.clip(rows.query_starts[-1] - tokens[0], 0, tokens.shape[0])
        last_row = jnp.where(count > 0, row[count - 1], -1)
        shifts = rows.lengths - rows.query_starts[1:]
        return cls(tokens, row, tokens + shifts[row], last_row, rows.query_starts, shifts)

    def earliest(self, row: Int[Array, ""], window: int | None) -> Int[Array, ""]:
        """The first key position that a query of `row` in the tile sees."""
        query = jnp.maximum(self.tokens[0], self.starts[row]) + self.shifts[row]
        return jnp.maximum(query - window + 1, 0) if window else jnp.zeros_like(query)

    def latest(self, row: Int[Array, ""]) -> Int[Array, ""]:
        """The last key position that a query of `row` in the tile sees."""
        return jnp.minimum(self.tokens[-1], self.starts[row + 1] - 1) + self.shifts[row]

    def sees(
        self, row: Int[Array, ""], keys: Int[Array, " K"], window: int | None
    ) -> Bool[Array, "N K"]:
        """Which keys, at positions `keys` of `row`, each query sees."""
        distance = self.positions[:, None] - keys[None, :]
        visible = (distance >= 0) & (self.rows == row)[:, None]
        return visible if window is None else visible & (distance < window)
