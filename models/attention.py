"""The seam every architecture's attention goes through: paged with a cache, causal without."""

import functools
import logging
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..pallas_kernels import paged_decode, paged_prefill, reference
from .batch import TokenBatch
from .layers import precision

log = logging.getLogger("quire")

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
    paged = _paged(jax.default_backend(), str(k_pool.dtype), q.shape[-1], q.shape[1] // k.shape[1])
    pages = (k_pool, v_pool, batch.page_table, batch.lengths)
    options = {"scale": scale, "window": window, "soft_cap": soft_cap}
    if batch.decode:
        return paged.decode(q, *pages, **options), (k_pool, v_pool)
    return paged.prefill(q, *pages, batch.query_starts, **options), (k_pool, v_pool)


class _Paged(NamedTuple):
    """Attention over pages, by the signatures of `pallas_kernels.reference`."""

    decode: Callable[..., Array]
    prefill: Callable[..., Array]


_TWINS = _Paged(reference.paged_decode, reference.paged_prefill)
_KERNELS = _Paged(paged_decode.paged_decode, paged_prefill.paged_prefill)


@functools.cache
def _paged(backend: str, dtype: str, size: int, groups: int) -> _Paged:
    """The kernels where they can run, else their twins; says once which, and why."""
    reason = _why_not(backend, dtype, size, groups)
    name = "GPU kernels" if reason is None else f"the plain reference, since {reason}"
    log.info("attention over %s pages, heads of %d: %s", dtype, size, name)
    return _KERNELS if reason is None else _TWINS


def _why_not(backend: str, dtype: str, size: int, groups: int) -> str | None:
    """What keeps the kernels from running; None where nothing does."""
    if backend != "gpu":
        return f"JAX runs on {backend}"
    if jax.__version_info__ < (0, 11):
        return f"the kernels need jax 0.11, this is {jax.__version__}"
    capability = getattr(jax.devices()[0], "compute_capability", "0")
    if float(capability) < 8:
        return f"the GPU's compute capability is {capability}, the kernels need 8.0"
    if dtype not in ("bfloat16", "float16"):
        return f"the kernels know bfloat16 and float16, not {dtype}"
    if size not in (64, 128, 256):
        return f"the kernels know heads of 64, 128 and 256, not {size}"
    if groups > 16:
        return f"the kernels know up to 16 query heads a KV head, not {groups}"
    return None


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
