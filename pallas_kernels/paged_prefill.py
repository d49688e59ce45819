"""Attention of ragged rows over a pool of KV pages, as a Triton kernel for GPUs.

The meaning is that of `reference.paged_prefill`; the algorithm is FlashAttention
(arXiv:2205.14135). A program serves one tile: some consecutive queries of one row, times the
query heads of one KV head, so that the heads of a group share every key and value they load.

A program reads the keys of its tile one block after the other. A row of one query over a long
context is therefore slow: nothing splits its keys.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Bool, Float, Int

_LOWEST = -1e30
_LOG2_E = math.log2(math.e)


class _Plan(NamedTuple):
    """What is fixed when the kernel is compiled."""

    tokens: int
    """Query tokens of a tile."""
    groups: int
    slots: int
    """Query heads of a tile; the groups, rounded up to a power of two."""
    keys: int
    """Tokens of a block of keys."""
    page: int
    scale: float
    window: int | None
    soft_cap: float | None


class _Tile(NamedTuple):
    """Consecutive queries of a row: a line of what `tiles` returns."""

    row: Int[Array, ""]
    token: Int[Array, ""]
    queries: Int[Array, ""]
    first: Int[Array, ""]

    @property
    def last(self) -> Int[Array, ""]:
        """The position of the last query; negative where the tile sees nothing."""
        return self.first + self.queries - 1

    def earliest(self, window: int | None) -> Int[Array, ""]:
        """The first position that a query sees."""
        first = jnp.zeros_like(self.first)
        return first if window is None else jnp.maximum(self.first - window + 1, first)


class _Softmax(NamedTuple):
    """A softmax-weighted sum in progress, for each of the N queries times heads. All float32."""

    peak: Float[Array, " N"]
    total: Float[Array, " N"]
    acc: Float[Array, "N D"]


def tiles(
    query_starts: Int[Array, " R+1"], lengths: Int[Array, " R"], total: int, size: int
) -> Int[Array, "tiles 4"]:
    """Cuts `total` query tokens into tiles of at most `size` consecutive tokens of one row.

    Each row may end with a partial tile, so total // size + R tiles always suffice; one more is
    for the padding behind the rows, which is cut like a row that sees nothing. Together the tiles
    cover every token once. Those with the most keys come first, which balances the load.

    Returns:
        For each tile its row, its first token, its count of tokens (0 for tiles not needed) and
        the position of its first token in the row (negative for padding).
    """
    ends = jnp.append(query_starts[1:], total).astype(jnp.int32)
    starts = query_starts.astype(jnp.int32)
    shifts = jnp.append(lengths.astype(jnp.int32) - ends[:-1], -2 * total)
    last = jnp.cumsum(pl.cdiv(ends - starts, size), dtype=jnp.int32)
    number = jnp.arange(total // size + ends.shape[0], dtype=jnp.int32)
    row = jnp.searchsorted(last, number, side="right", method="compare_all").astype(jnp.int32)
    row = jnp.minimum(row, ends.shape[0] - 1)
    token = ends[row] - (ends - starts)[row] + (number - jnp.append(0, last)[row]) * size
    count = jnp.clip(ends[row] - token, 0, size)
    first = jnp.where(count > 0, token + shifts[row], -1)
    row = jnp.minimum(row, lengths.shape[0] - 1)
    table = jnp.stack([row, token, count, first], axis=1)
    return table[jnp.argsort(-(first + count))]


def tile_tokens(q: Float[Array, "T Hq D"], kv_heads: int) -> int:
    """Query tokens of a tile of `paged_prefill`, the `size` to give to `tiles`."""
    queries, _ = _shape(q)
    return max(1, queries // pl.next_power_of_2(q.shape[1] // kv_heads))


def _shape(q: Float[Array, "T Hq D"]) -> tuple[int, int]:
    """Queries times heads of a tile, and tokens of a block of keys: as many as registers hold."""
    return (128, 64) if q.dtype.itemsize == 2 else (32, 16)


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
    interpret: bool = False,
) -> Float[Array, "T Hq D"]:
    """`reference.paged_prefill` as a GPU kernel; q of 16 or 32 bits, D a power of two.

    Args:
        interpret: run the kernel's program in plain XLA, for tests without a GPU.
    """
    size, kv_heads, width = k_pool.shape[1:]
    groups = q.shape[1] // kv_heads
    tokens = tile_tokens(q, kv_heads)
    slots = pl.next_power_of_2(groups)
    _, keys = _shape(q)
    plan = _Plan(tokens, groups, slots, keys, size, scale, window, soft_cap)
    table = tiles(query_starts, lengths, q.shape[0], tokens)
    pools = (pool.reshape(-1, kv_heads, width) for pool in (k_pool, v_pool))
    call = pl.pallas_call(
        functools.partial(_kernel, plan=plan),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        grid=(kv_heads, table.shape[0]),
        compiler_params=triton.CompilerParams(num_warps=8, num_stages=3),
        interpret=interpret,
        name="paged_prefill",
    )
    return call(table, q, *pools, page_table)


def _kernel(
    tiles_ref: Int[Array, "tiles 4"],
    q_ref: Float[Array, "T Hq D"],
    k_ref: Float[Array, "P*S Hkv D"],
    v_ref: Float[Array, "P*S Hkv D"],
    table_ref: Int[Array, "R M"],
    out_ref: Float[Array, "T Hq D"],
    *,
    plan: _Plan,
) -> None:
    kv_head, number = pl.program_id(0), pl.program_id(1)
    tile = _Tile(*(tiles_ref[number, field] for field in range(4)))
    index = jnp.arange(plan.tokens * plan.slots)
    offset, member = index // plan.slots, index % plan.slots
    token, head = tile.token + offset, kv_head * plan.groups + member
    # plain loads must stay in bounds; the store below leaves out what is not of this tile
    q = q_ref[jnp.minimum(token, q_ref.shape[0] - 1), jnp.minimum(head, q_ref.shape[1] - 1)]

    def absorb(block: Array, state: _Softmax, *, masked: bool) -> _Softmax:
        keys = block * plan.keys + jnp.arange(plan.keys)
        # keys that no query sees give way to one that is seen: they may be NaN in the pool
        known = jnp.clip(keys, tile.earliest(plan.window), tile.last) if masked else keys
        slot = table_ref[tile.row, known // plan.page] * plan.page + known % plan.page
        visible = _sees(tile.first + offset, keys, plan.window) if masked else None
        return _absorb(state, q, k_ref[slot, kv_head], v_ref[slot, kv_head], visible, plan)

    zeros = jnp.zeros(q.shape, jnp.float32)
    state = _Softmax(jnp.full(index.shape, _LOWEST), jnp.zeros(index.shape), zeros)
    for start, end, masked in _spans(tile, plan):
        state = jax.lax.fori_loop(start, end, functools.partial(absorb, masked=masked), state)
    out = state.acc / jnp.where(state.total > 0, state.total, 1.0)[:, None]
    mask = (offset < tile.queries) & (member < plan.groups)
    column = jnp.arange(out.shape[1])
    at = (jnp.broadcast_to(x, out.shape) for x in (token[:, None], head[:, None], column[None, :]))
    mask = jnp.broadcast_to(mask[:, None], out.shape)
    target: Any = out_ref.at[*at]
    triton.store(target, out.astype(out_ref.dtype), mask=mask)


def _spans(tile: _Tile, plan: _Plan) -> list[tuple[Array, Array, bool]]:
    """Ranges of key blocks that the tile sees, and whether some query sees only a part of them."""
    end = pl.cdiv(jnp.maximum(tile.last + 1, 0), plan.keys)
    whole_end = jnp.maximum(tile.first + 1, 0) // plan.keys
    if plan.window is None:
        return [(jnp.zeros_like(end), whole_end, False), (whole_end, end, True)]
    start = tile.earliest(plan.window) // plan.keys
    whole = pl.cdiv(jnp.maximum(tile.last - plan.window + 1, 0), plan.keys)
    whole = jnp.minimum(whole, end)
    whole_end = jnp.maximum(whole_end, whole)
    return [(start, whole, True), (whole, whole_end, False), (whole_end, end, True)]


def _sees(
    positions: Int[Array, " N"], keys: Int[Array, " K"], window: int | None
) -> Bool[Array, "N K"]:
    distance = positions[:, None] - keys[None, :]
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)


def _absorb(
    state: _Softmax,
    q: Float[Array, "N D"],
    k: Float[Array, "K D"],
    v: Float[Array, "K D"],
    visible: Bool[Array, "N K"] | None,
    plan: _Plan,
) -> _Softmax:
    """Adds one block of keys and values; `visible` None is all of them."""
    scores = _scores(_dot(q, k.astype(q.dtype).T), plan)
    if visible is not None:
        scores = jnp.where(visible, scores, -jnp.inf)
    # peak is finite, so that weights of keys not seen are 0 even where no key was seen yet
    peak = jnp.maximum(state.peak, scores.max(axis=1))
    weights = jnp.exp2(scores - peak[:, None])
    decay = jnp.exp2(state.peak - peak)
    total = state.total * decay + weights.sum(axis=1)
    acc = state.acc * decay[:, None] + _dot(weights.astype(q.dtype), v.astype(q.dtype))
    return _Softmax(peak, total, acc)


def _scores(products: Float[Array, "N K"], plan: _Plan) -> Float[Array, "N K"]:
    """Logarithms to the base 2 of the weights."""
    if plan.soft_cap is None:
        return products * (plan.scale * _LOG2_E)
    return jnp.tanh(products * (plan.scale / plan.soft_cap)) * (plan.soft_cap * _LOG2_E)


def _dot(a: Float[Array, "N I"], b: Float[Array, "I K"]) -> Float[Array, "N K"]:
    exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.dot(a, b, precision=exact, preferred_element_type=jnp.float32)
