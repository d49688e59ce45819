"""Attention within segments of one row of tokens in plain `jnp`, which defines the kernel.

N tokens, H heads, D head size. A segment is a run of tokens of one number; 0 is padding.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

BLOCK = 256
"""Queries whose scores exist at a time; N is a multiple of it."""


def segment_attention(
    q: Float[Array, "N H D"],
    k: Float[Array, "N H D"],
    v: Float[Array, "N H D"],
    segments: Int[Array, " N"],
    *,
    scale: float,
) -> Float[Array, "N H D"]:
    """Attention of each query over all keys of its segment, in both directions.

    Args:
        segments: the same number throughout a segment; padding, 0, gives zeros.
        scale: factor of the products of queries and keys.
    """
    exact = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None

    def attend_block(block: tuple[Array, Array]) -> Array:
        queries, own = block
        scores = jnp.einsum(
            "qhd,khd->hqk", queries, k, precision=exact, preferred_element_type=jnp.float32
        )
        visible = own[:, None] == segments[None, :]
        scores = jnp.where(visible[None], scores * scale, -jnp.inf)
        weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
        out = jnp.einsum("hqk,khd->qhd", weights, v, precision=exact)
        return jnp.where((own > 0)[:, None, None], out, jnp.zeros_like(out))

    blocks = q.reshape(-1, BLOCK, *q.shape[1:]), segments.reshape(-1, BLOCK)
    return jax.lax.map(attend_block, blocks).reshape(q.shape)
