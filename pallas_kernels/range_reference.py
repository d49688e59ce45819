"""Attention in both directions, as towers have it, in plain `jnp`, which defines the kernels.

N tokens, H heads, D head size; B clips or pictures of S states each.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .reference import dot

BLOCK = 256
"""Queries of segments whose scores exist at a time; N is a multiple of it."""
_SCORES = 2**26
"""Scores of a batch that exist at a time, if one alone has no more."""


def segment_attention(
    q: Float[Array, "N H D"],
    k: Float[Array, "N H D"],
    v: Float[Array, "N H D"],
    segments: Int[Array, " N"],
    *,
    scale: float,
) -> Float[Array, "N H D"]:
    """Attention of each query over all keys of its segment.

    Args:
        segments: the same number throughout a segment; padding, 0, gives zeros.
        scale: factor of the products of queries and keys.
    """

    def attend(block: tuple[Array, Array]) -> Array:
        queries, own = block
        visible = (own[:, None] == segments[None]) & (own > 0)[:, None]
        return _attend(queries, k, v, visible, scale)

    blocks = q.reshape(-1, BLOCK, *q.shape[1:]), segments.reshape(-1, BLOCK)
    return jax.lax.map(attend, blocks).reshape(q.shape)


def batch_attention(
    q: Float[Array, "B S H D"],
    k: Float[Array, "B S H D"],
    v: Float[Array, "B S H D"],
    lengths: Int[Array, " B"],
    *,
    scale: float,
) -> Float[Array, "B S H D"]:
    """Attention of all S queries over the first `lengths[b]` keys of their own; 0 gives zeros."""

    def attend(one: tuple[Array, ...]) -> Array:
        *arrays, length = one
        visible = jnp.arange(q.shape[1]) < length
        return _attend(*arrays, jnp.broadcast_to(visible, (q.shape[1], q.shape[1])), scale)

    at_once = max(1, _SCORES // (q.shape[1] ** 2 * q.shape[2]))
    if at_once >= q.shape[0]:
        return jax.vmap(lambda *one: attend(one))(q, k, v, lengths)
    return jax.lax.map(attend, (q, k, v, lengths), batch_size=at_once)


def _attend(
    q: Float[Array, "Q H D"],
    k: Float[Array, "K H D"],
    v: Float[Array, "K H D"],
    visible: Bool[Array, "Q K"],
    scale: float,
) -> Float[Array, "Q H D"]:
    scores = dot("qhd,khd->hqk", q, k) * scale
    lowest = jnp.finfo(jnp.float32).min  # finite, so that no gradient is NaN
    weights = jax.nn.softmax(jnp.where(visible[None], scores, lowest), axis=-1)
    out = dot("hqk,khd->qhd", weights.astype(v.dtype), v)
    seen = visible.any(axis=1)[:, None, None]
    return jnp.where(seen, out, jnp.zeros_like(out)).astype(v.dtype)
