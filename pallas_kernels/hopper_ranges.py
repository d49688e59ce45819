"""Attention in both directions, as towers have it, by the tiles of `hopper_prefill`.

A query sees the keys of one range, those of its segment or clip, rather than those before it. Keys
and values lie in order, so a page is a block of keys. Needs jax 0.11.2, heads of 64, 96, 128 or
256, and q, k and v of the same 16 bits.
"""

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from . import hopper_prefill
from .prefill_tiles import Tile

_TOKENS = 128
"""What the number of tokens must be a multiple of."""


def segment_attention(
    q: Float[Array, "N H D"],
    k: Float[Array, "N H D"],
    v: Float[Array, "N H D"],
    segments: Int[Array, " N"],
    *,
    scale: float,
    interpret: bool = False,
) -> Float[Array, "N H D"]:
    """`range_reference.segment_attention` as a kernel for Hopper.

    Args:
        scale: more than 0.
        interpret: run on any device, slowly.
    """
    return _attend(q, k, v, segment_ranges(segments), scale, interpret)


def batch_attention(
    q: Float[Array, "B S H D"],
    k: Float[Array, "B S H D"],
    v: Float[Array, "B S H D"],
    lengths: Int[Array, " B"],
    *,
    scale: float,
    interpret: bool = False,
) -> Float[Array, "B S H D"]:
    """`range_reference.batch_attention` as a kernel for Hopper.

    Args:
        scale: more than 0.
        interpret: run on any device, slowly.
    """
    number, states = q.shape[:2]
    count, padding = number * states, -(number * states) % _TOKENS
    first = jnp.repeat(jnp.arange(number, dtype=jnp.int32) * states, states)
    seen = jnp.stack([first, first + jnp.repeat(lengths.astype(jnp.int32), states)])
    flat = (x.reshape(count, *x.shape[2:]) for x in (q, k, v))
    flat = (jnp.pad(x, ((0, padding), (0, 0), (0, 0))) for x in flat)
    out = _attend(*flat, jnp.pad(seen, ((0, 0), (0, padding))), scale, interpret)
    return out[:count].reshape(q.shape)


def segment_ranges(segments: Int[Array, " N"]) -> Int[Array, "2 N"]:
    """The first token of each token's segment, and the one behind its last; both 0 for padding."""
    number = jnp.arange(segments.shape[0], dtype=jnp.int32)
    begins = segments != jnp.roll(segments, 1)
    ends = segments != jnp.roll(segments, -1)
    first = lax.cummax(jnp.where(begins, number, 0))
    behind = lax.cummin(jnp.where(ends, number + 1, segments.shape[0]), reverse=True)
    return jnp.where(segments > 0, jnp.stack([first, behind]), 0)


def _attend(
    q: Float[Array, "N H D"],
    k: Float[Array, "N H D"],
    v: Float[Array, "N H D"],
    seen: Int[Array, "2 N"],
    scale: float,
    interpret: bool,
) -> Float[Array, "N H D"]:
    """Attention of each query over the keys from seen[0] on, up to the one before seen[1]."""
    count, heads, width = q.shape
    plan = hopper_prefill.Plan.of_ranges(width, heads, scale, interpret)
    table = _tiles(seen, plan.tokens, plan.keys)
    pages = jnp.arange(count // plan.page, dtype=jnp.int32)[None]
    rows, *pools = (x.reshape(count, heads * width) for x in (q, k, v))
    kernel = hopper_prefill.call(plan, table.shape[0], count, q.dtype)
    out = kernel(seen, table, pages, rows, *pools)
    return out.reshape(count, heads, plan.out_width)[..., :width]


def _tiles(seen: Int[Array, "2 N"], size: int, keys: int) -> Int[Array, "tiles F"]:
    """`Tile`s of `size` tokens each, with the blocks of `keys` keys that any or all of them see."""
    count = seen.shape[1]
    first, behind = seen.reshape(2, -1, size)
    token = jnp.arange(0, count, size, dtype=jnp.int32)
    zeros, counts = jnp.zeros_like(token), jnp.full_like(token, count)
    stop = pl.cdiv(behind.max(axis=1), keys)
    earliest = jnp.where(behind > first, first, count).min(axis=1)
    start = jnp.minimum(earliest // keys, stop)
    whole = jnp.clip(pl.cdiv(first.max(axis=1), keys), start, stop)
    whole_end = jnp.clip(behind.min(axis=1) // keys, whole, stop)
    blocks = start, whole, whole_end, stop, zeros, counts
    return jnp.stack(Tile(zeros, token, token, token + size, zeros, *blocks), axis=1)
