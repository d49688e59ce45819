"""Attention of one query per row over a pool of KV pages, for GPUs: Pallas through Triton.

`reference.paged_decode` defines it. The tokens of a row are split over thread blocks that leave
partial results, and a second kernel combines these, as in Flash-Decoding
(https://crfm.stanford.edu/2023/10/12/flashdecoding.html). Where a row is split depends on M, S and
the window, not on the other rows, so a row gives the same bits in every batch.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, Int

_HEADS = 16
"""Rows of the smallest tensor-core tile, to which the query heads of a KV head are padded."""
_TILE_BYTES = 16384
"""Of a block of keys, and of values: little enough for several thread blocks on each SM."""
_SPLIT_TOKENS = 512
_SPLITS = 16
_LOWEST = -1e30
_LOG2_E = math.log2(math.e)


class _Plan(NamedTuple):
    """What is fixed when the kernels are traced."""

    groups: int
    page: int
    block: int
    """Tokens that one step of a split takes; a power of two."""
    split_blocks: int
    splits: int
    scale: float
    window: int | None
    soft_cap: float | None

    def start(self, length: Int[Array, ""]) -> Int[Array, ""]:
        """The first token that a query at the end of a row sees."""
        return jnp.maximum(length - self.window, 0) if self.window else jnp.zeros_like(length)

    def blocks(self, length: Int[Array, ""]) -> tuple[Int[Array, ""], Int[Array, ""]]:
        """The first of the blocks that a row of this length sees, and how many there are."""
        first = self.start(length) // self.block
        return first, pl.cdiv(length, self.block) - first


class _Softmax(NamedTuple):
    """The softmax-weighted sums in progress of the queries of a tile. Exponents are to base 2."""

    peak: Float[Array, "16"]
    total: Float[Array, "16"]
    acc: Float[Array, "16 D"]


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
    split_tokens: int = _SPLIT_TOKENS,
    interpret: bool = False,
) -> Float[Array, "R Hq D"]:
    """`reference.paged_decode` where D is 64, 128 or 256 and a KV head has at most 16 query heads.

    Products are of the pool's type, accumulated in float32.

    Args:
        split_tokens: the fewest tokens a thread block takes of a row that has more; where a row can
            show more than 16 times as many, it takes a sixteenth of them.
        interpret: run on any device, slowly.

    The other arguments and the result are those of `reference.paged_decode`.
    """
    _, page, kv_heads, width = k_pool.shape
    block = max(16, min(128, _TILE_BYTES // (width * k_pool.dtype.itemsize)))
    blocks = pl.cdiv(page_table.shape[1] * page, block)
    if window is not None:
        blocks = min(blocks, pl.cdiv(window - 1, block) + 1)
    split_blocks = max(pl.cdiv(split_tokens, block), pl.cdiv(blocks, _SPLITS))
    splits = pl.cdiv(blocks, split_blocks)
    groups = q.shape[1] // kv_heads
    plan = _Plan(groups, page, block, split_blocks, splits, scale, window, soft_cap)
    k, v = (pool.reshape(-1, kv_heads, width) for pool in (k_pool, v_pool))
    out, *logs = _attend(plan, q, k, v, page_table, lengths, interpret)
    return _combine(plan, out, logs[0], lengths, q.dtype, interpret) if logs else out


def _attend(
    plan: _Plan,
    q: Float[Array, "R Hq D"],
    k: Float[Array, "N Hkv D"],
    v: Float[Array, "N Hkv D"],
    page_table: Int[Array, "R M"],
    lengths: Int[Array, " R"],
    interpret: bool,
) -> list[Array]:
    """The result if there is one split, else [R, Hq, splits, D] and its [R, Hq, splits].

    The latter are the means of each split and the logarithms, to base 2, of their weights, and
    arbitrary where a row has no such split.
    """
    shapes = [jax.ShapeDtypeStruct(q.shape, q.dtype)]
    if plan.splits > 1:
        partial = (*q.shape[:2], plan.splits)
        shapes = [jax.ShapeDtypeStruct((*partial, q.shape[2]), jnp.float32)]
        shapes.append(jax.ShapeDtypeStruct(partial, jnp.float32))
    return pl.pallas_call(
        functools.partial(_attend_kernel, plan),
        out_shape=shapes,
        # the first varies fastest: the heads of a token lie side by side in memory
        grid=(k.shape[1], q.shape[0], plan.splits),
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=4),
        interpret=interpret,
        name="paged_decode",
    )(q, k, v, page_table, lengths)


def _attend_kernel(
    plan: _Plan,
    q_ref: jax.Ref,
    k_ref: jax.Ref,
    v_ref: jax.Ref,
    table_ref: jax.Ref,
    lengths_ref: jax.Ref,
    *out_refs: jax.Ref,
) -> None:
    """One split of one row, for the query heads of one KV head."""
    kv_head, row, split = (pl.program_id(axis) for axis in range(3))
    length = lengths_ref[row]
    first, count = plan.blocks(length)
    begin = split * plan.split_blocks
    end = jnp.minimum(begin + plan.split_blocks, count)
    # padding repeats heads, so that it stores what they store
    heads = kv_head * plan.groups + jnp.arange(_HEADS) % plan.groups

    def load(block: Array) -> tuple[Array, Array, Array]:
        tokens = block * plan.block + jnp.arange(plan.block)
        start = plan.start(length)
        visible = (tokens >= start) & (tokens < length)
        # a hidden token reads a visible one, since anything else in the pool may be NaN
        tokens = jnp.maximum(jnp.minimum(tokens, length - 1), start)
        slots = table_ref[row, tokens // plan.page] * plan.page + tokens % plan.page
        return k_ref[slots, kv_head], v_ref[slots, kv_head], visible

    def attend() -> None:
        q = q_ref[row, heads].astype(k_ref.dtype)
        state = _Softmax(
            jnp.full((_HEADS,), _LOWEST, jnp.float32),
            jnp.zeros((_HEADS,), jnp.float32),
            jnp.zeros(q.shape, jnp.float32),
        )

        def step(i: Array, state: _Softmax) -> _Softmax:
            return _absorb(plan, state, q, *load(first + i))

        state = jax.lax.fori_loop(begin, end, step, state)
        total = jnp.where(state.total > 0, state.total, 1.0)
        out = state.acc / total[:, None]
        if plan.splits == 1:
            out_refs[0][row, heads] = out.astype(out_refs[0].dtype)
        else:
            out_refs[0][row, heads, split] = out
            out_refs[1][row, heads, split] = state.peak + jnp.log2(total)

    if plan.splits == 1:
        attend()
    else:
        pl.when(begin < end)(attend)


def _absorb(plan: _Plan, state: _Softmax, q: Array, k: Array, v: Array, visible: Array) -> _Softmax:
    """Adds a block of keys and values, of which at least one is visible."""
    scores = _dot(q, k.T)
    if plan.soft_cap is None:
        scores *= plan.scale * _LOG2_E
    else:
        scores = plan.soft_cap * _LOG2_E * jnp.tanh(scores * (plan.scale / plan.soft_cap))
    scores = jnp.where(visible[None, :], scores, _LOWEST)
    peak = jnp.maximum(state.peak, scores.max(axis=1))
    weights = jnp.exp2(scores - peak[:, None])
    decay = jnp.exp2(state.peak - peak)
    total = state.total * decay + weights.sum(axis=1)
    acc = state.acc * decay[:, None] + _dot(weights.astype(v.dtype), v)
    return _Softmax(peak, total, acc)


def _dot(a: Array, b: Array) -> Array:
    exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return triton.dot(a, b, precision=exact)


def _combine(
    plan: _Plan,
    means: Float[Array, "R Hq splits D"],
    logs: Float[Array, "R Hq splits"],
    lengths: Int[Array, " R"],
    dtype: jnp.dtype,
    interpret: bool,
) -> Float[Array, "R Hq D"]:
    rows, heads, _, width = means.shape
    return pl.pallas_call(
        functools.partial(_combine_kernel, plan),
        out_shape=jax.ShapeDtypeStruct((rows, heads, width), dtype),
        grid=(heads, rows),
        compiler_params=triton.CompilerParams(num_warps=1),
        interpret=interpret,
        name="paged_decode_combine",
    )(means, logs, lengths)


def _combine_kernel(
    plan: _Plan, means_ref: jax.Ref, logs_ref: jax.Ref, lengths_ref: jax.Ref, out_ref: jax.Ref
) -> None:
    """One query head of one row; a row without splits is the mean of zeros."""
    head, row = pl.program_id(0), pl.program_id(1)
    _, count = plan.blocks(lengths_ref[row])
    splits = jnp.arange(pl.next_power_of_2(plan.splits))
    exists = splits * plan.split_blocks < count
    at = jnp.minimum(splits, plan.splits - 1)
    # loads of splits that do not exist are masked: nobody wrote them
    logs = triton.load(logs_ref.at[row, head, at], mask=exists, other=_LOWEST)
    weights = jnp.exp2(logs - logs.max())[:, None]
    width = jnp.arange(means_ref.shape[-1])[None, :]
    tile = jnp.broadcast_to(exists[:, None], (splits.shape[0], width.shape[1]))
    means = triton.load(means_ref.at[row, head, at[:, None], width], mask=tile, other=0.0)
    out = (means * weights).sum(axis=0) / weights.sum()
    out_ref[row, head] = out.astype(out_ref.dtype)
