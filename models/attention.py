"""The seam every architecture's attention goes through: paged with a cache, causal without."""

import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..pallas_kernels import reference
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
    size, stored = q.shape[-1], cache[0].shape[-1]
    q, k, v = (_widen(x, stored) for x in (q, k, v))
    paged = _paged(jax.default_backend(), str(cache[0].dtype), size, q.shape[1] // k.shape[1])
    cache = paged.write(*cache, k, v, batch.write_index)
    options = {"scale": scale, "window": window, "soft_cap": soft_cap}
    if batch.decode:
        out = paged.decode(q, *cache, batch.page_table, batch.lengths, **options)
    else:
        out = _mixed(paged, q, cache, batch, **options)
    return out[..., :size], cache


class PoolLayout(NamedTuple):
    """What suits the attention that will read a pool."""

    head_dim: int
    """The model's, or the next one that the kernels know."""
    page_size: int
    """Tokens. Kernels copy page by page: large pages take fewer copies."""


def pool_layout(backend: str, dtype: str, head_dim: int, groups: int) -> PoolLayout:
    """The pool's layout for heads of `head_dim`, `groups` query heads a KV head."""
    if _why_not(backend, dtype, head_dim, groups) is not None:
        return PoolLayout(head_dim, 16)
    return PoolLayout(next(size for size in _SIZES if size >= head_dim), 64)


def _widen(x: Float[Array, "T H D"], size: int) -> Float[Array, "T H {size}"]:
    """Heads with zeros behind them, which change no product."""
    missing = size - x.shape[-1]
    return jnp.pad(x, ((0, 0), (0, 0), (0, missing))) if missing else x


class _Paged(NamedTuple):
    """Attention over pages, by the signatures of `pallas_kernels.reference`."""

    write: Callable[..., LayerCache]
    decode: Callable[..., Array]
    prefill: Callable[..., Array]


def _mixed(
    paged: _Paged, q: Float[Array, "T Hq D"], cache: LayerCache, batch: TokenBatch, **options: Any
) -> Float[Array, "T Hq D"]:
    """The first rows, while they have one query each, go to `decode`, and the rest to `prefill`.

    `prefill` walks through the keys of a row in order, which takes long for one query over a long
    context, and its tiles are mostly empty for such a row.
    """
    table, lengths, starts = batch.page_table, batch.lengths, batch.query_starts
    if batch.one_path:
        return paged.prefill(q, *cache, table, lengths, starts, **options)
    rows = lengths.shape[0]
    number = jnp.arange(rows)
    single = (starts[:-1] == number) & (starts[1:] == number + 1)
    out = paged.prefill(q, *cache, table, lengths, starts, skip=single, **options)
    lengths = jnp.where(single, lengths, 0)
    decoded = paged.decode(q[:rows], *cache, table, lengths, **options)
    return out.at[:rows].set(jnp.where(single[:, None, None], decoded, out[:rows]))


_TWINS = _Paged(reference.kv_write, reference.paged_decode, reference.paged_prefill)
_SIZES = (64, 96, 128, 256)
"""Head sizes the kernels know; others are padded to the next."""


@functools.cache
def _paged(backend: str, dtype: str, size: int, groups: int) -> _Paged:
    """The kernels where they can run, else their twins; says once which, and why."""
    reason = _why_not(backend, dtype, size, groups)
    name = "Hopper kernels" if reason is None else f"the plain reference, since {reason}"
    log.info("attention over %s pages, heads of %d: %s", dtype, size, name)
    if reason is not None:
        return _TWINS
    from ..pallas_kernels import hopper_decode, hopper_prefill, kv_write  # slow to import

    return _Paged(kv_write.kv_write, hopper_decode.paged_decode, hopper_prefill.paged_prefill)


def _why_not(backend: str, dtype: str, size: int, groups: int) -> str | None:
    """What keeps the kernels from running; None where nothing does."""
    if backend != "gpu":
        return f"JAX runs on {backend}"
    if jax.__version_info__ < (0, 11, 2):
        return f"the kernels need jax 0.11.2, this is {jax.__version__}"
    capability = getattr(jax.devices()[0], "compute_capability", "0")
    if int(float(capability)) != 9:
        return f"the kernels are for compute capability 9 (Hopper), this GPU has {capability}"
    if dtype not in ("bfloat16", "float16"):
        return f"the kernels know bfloat16 and float16, not {dtype}"
    if size > _SIZES[-1]:
        return f"the kernels know heads of at most {_SIZES[-1]}, not {size}"
    if groups > 16:
        return f"the kernels know up to 16 query heads a KV head, not {groups}"
    return None


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
