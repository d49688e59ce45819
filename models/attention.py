"""The seam every architecture's attention goes through: paged with a cache, causal without."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..pallas_kernels import reference
from .batch import TokenBatch
from .layers import precision

LayerCache = tuple[Float[Array, "P S Hkv D"], Float[Array, "P S Hkv D"]]
"""One layer's pool of K and of V pages."""


@jax.named_scope("attention")
def attend(
    q: Float[Array, "T Hq D"],
    k: Float[Array, "T Hkv D"],
    v: Float[Array, "T Hkv D"],
    cache: LayerCache | None,
    batch: TokenBatch | None,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
) -> tuple[Float[Array, "T Hq D"], LayerCache | None]:
    """Writes k and v into the pool, then attends each query over the pages of its row.

    Query head h uses KV head h // (Hq / Hkv). Without cache and batch the T tokens are one
    sequence from position 0, and the result is differentiable.

    Args:
        cache: this layer's pool; inside a jit that donates it, it is written in place.
        scale: factor of the products of queries and keys.
        window: a query sees this many keys, itself included; None is all of them.
        soft_cap: scores become soft_cap * tanh(score / soft_cap); None leaves them.

    Returns:
        The attended values, 0 for padding tokens, and the cache with k and v written.
    """
    if cache is None or batch is None:
        return causal(q, k, v, scale=scale, window=window, soft_cap=soft_cap), None
    k_pool, v_pool = (write(p, x, batch.write_index) for p, x in zip(cache, (k, v), strict=True))
    pages = (k_pool, v_pool, batch.page_table, batch.lengths)
    if batch.decode:
        out = reference.paged_decode(q, *pages, scale=scale, window=window, soft_cap=soft_cap)
    else:
        out = reference.paged_prefill(
            q, *pages, batch.query_starts, scale=scale, window=window, soft_cap=soft_cap
        )
    return out, (k_pool, v_pool)


def write(
    pool: Float[Array, "P S Hkv D"], rows: Float[Array, "T Hkv D"], index: Int[Array, " T"]
) -> Float[Array, "P S Hkv D"]:
    """The pool with `rows` at the token slots `index` (page * S + offset), in the pool's type.

    Slots of the null page may occur twice, so the scatter makes no promise of uniqueness.
    """
    slots = pool.reshape(-1, *pool.shape[2:])
    slots = slots.at[index].set(rows.astype(pool.dtype), mode="promise_in_bounds")
    return slots.reshape(pool.shape)


def causal(
    q: Float[Array, "T Hq D"],
    k: Float[Array, "T Hkv D"],
    v: Float[Array, "T Hkv D"],
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
) -> Float[Array, "T Hq D"]:
    """Causal attention over one sequence of T tokens, differentiable; the arguments of `attend`.

    Holds all T * T scores of every head, so it is for training and tests.
    """
    t, kv_heads, size = k.shape
    grouped = q.reshape(t, kv_heads, -1, size)
    exact = precision(q.dtype)
    scores = jnp.einsum(
        "qhgd,khd->hgqk", grouped, k, precision=exact, preferred_element_type=jnp.float32
    )
    scores = scores * scale
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    distance = jnp.arange(t)[:, None] - jnp.arange(t)[None, :]
    visible = (distance >= 0) & (distance < (window or t))
    scores = jnp.where(visible[None, None], scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("hgqk,khd->qhgd", weights, v, precision=exact).reshape(q.shape)
