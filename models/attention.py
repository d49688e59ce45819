"""The seam attention goes through: paged with a cache, causal without, both ways in towers."""

import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..pallas_kernels import block_reference, range_reference, reference
from . import hopper
from .batch import TokenBatch
from .layers import precision

log = logging.getLogger("quire")

LayerCache = tuple[Float[Array, "P S Hkv D"], Float[Array, "P S Hkv D"]]
"""One layer's pool of K and of V pages."""
Rotary = tuple[Float[Array, "T X/2"], Float[Array, "T X/2"]]
"""Cosine and sine of the angles of each token, see `RopeConfig.cos_sin`."""


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
    out = _over_pages(paged, q, cache, batch, scale=scale, window=window, soft_cap=soft_cap)
    return out[..., :size], cache


@jax.named_scope("attention")
def attend_rotary(
    qkv: Float[Array, "T Hkv G+2 D"],
    update: block_reference.Update | None,
    rotary: Rotary,
    cache: LayerCache | None,
    batch: TokenBatch | None,
    **options: Any,
) -> tuple[Float[Array, "T Hkv*G D"], LayerCache | None]:
    """`attend` with its `options`, after queries and keys are rotated, in fewer kernels.

    Args:
        qkv: the G queries of each KV head, its key and its value.
        update: what adapters still have to add to qkv, see `block_reference.rope_write`.
    """
    size = qkv.shape[-1]
    if cache is None or batch is None or cache[0].shape[-1] != size:
        q, k, v = split_heads(block_reference.updated(qkv, update).astype(qkv.dtype))
        q, k = block_reference.rotate(q, *rotary), block_reference.rotate(k, *rotary)
        return attend(q, k, v, cache, batch, **options)
    paged = _paged(jax.default_backend(), str(cache[0].dtype), size, qkv.shape[2] - 2)
    q, *written = paged.rope_write(*cache, qkv, *rotary, batch.write_index, update)
    cache = (written[0], written[1])
    return _over_pages(paged, q, cache, batch, **options), cache


@jax.named_scope("segment_attention")
def attend_segments(
    q: Float[Array, "N H D"],
    k: Float[Array, "N H D"],
    v: Float[Array, "N H D"],
    segments: Int[Array, " N"],
    *,
    scale: float,
) -> Float[Array, "N H D"]:
    """Attention of each query over all keys of its segment, in both directions.

    Args:
        segments: the same number throughout a segment; padding, 0, gives zeros. N is a multiple of
            `range_reference.BLOCK`.
        scale: factor of the products of queries and keys.
    """
    return _attend_ranges(range_reference.segment_attention, q, k, v, segments, scale)


@jax.named_scope("batch_attention")
def attend_batch(
    q: Float[Array, "B S H D"],
    k: Float[Array, "B S H D"],
    v: Float[Array, "B S H D"],
    lengths: Int[Array, " B"],
    *,
    scale: float,
) -> Float[Array, "B S H D"]:
    """Attention of all S queries over the first `lengths[b]` keys of their own, in both directions.

    Args:
        lengths: 0 gives zeros.
        scale: factor of the products of queries and keys.
    """
    return _attend_ranges(range_reference.batch_attention, q, k, v, lengths, scale)


def _attend_ranges(
    twin: Callable[..., Array], q: Array, k: Array, v: Array, seen: Int[Array, " X"], scale: float
) -> Array:
    """A function of `range_reference`, or its kernel, of the same name."""
    size = q.shape[-1]
    if _why_not(jax.default_backend(), str(q.dtype), size, groups=1) is not None:
        return twin(q, k, v, seen, scale=scale)
    from ..pallas_kernels import hopper_ranges  # slow to import

    attend = hopper.with_gradient(getattr(hopper_ranges, twin.__name__), twin, scale=scale)
    wide = (_widen(x, _known_size(size)) for x in (q, k, v))
    return attend(*wide, seen)[..., :size]


def split_heads(qkv: Float[Array, "T Hkv G+2 D"]) -> tuple[Array, Array, Array]:
    """q [T, Hkv * G, D], k and v [T, Hkv, D]."""
    q = qkv[:, :, :-2]
    return q.reshape(q.shape[0], -1, q.shape[-1]), qkv[:, :, -2], qkv[:, :, -1]


class PoolLayout(NamedTuple):
    """What suits the attention that will read a pool."""

    head_dim: int
    """The model's, or the next one that the kernels know."""
    page_size: int
    """Tokens. Kernels copy page by page: large pages take fewer copies."""


def pool_layout(backend: str, dtype: str, head_dim: int, groups: int) -> PoolLayout:
    """The pool's layout for heads of `head_dim`, `groups` query heads a KV head."""
    reason = _why_not(backend, dtype, head_dim, groups)
    _announce(dtype, head_dim, reason)
    if reason is not None:
        return PoolLayout(head_dim, 16)
    return PoolLayout(_known_size(head_dim), 64)


def _known_size(size: int) -> int:
    """The smallest head size that the kernels know and that is no smaller."""
    return next(known for known in _SIZES if known >= size)


def _widen(x: Float[Array, "*T D"], size: int) -> Float[Array, "*T {size}"]:
    """Heads with zeros behind them, which change no product."""
    missing = size - x.shape[-1]
    return jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, missing),)) if missing else x


class _Paged(NamedTuple):
    """Attention over pages, by the signatures of `pallas_kernels.reference`."""

    write: Callable[..., LayerCache]
    rope_write: Callable[..., tuple[Array, Array, Array]]
    decode: Callable[..., Array]
    prefill: Callable[..., Array]


def _over_pages(
    paged: _Paged, q: Float[Array, "T Hq D"], cache: LayerCache, batch: TokenBatch, **options: Any
) -> Float[Array, "T Hq D"]:
    if batch.decode:
        return paged.decode(q, *cache, batch.page_table, batch.lengths, **options)
    return _mixed(paged, q, cache, batch, **options)


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


_TWINS = _Paged(
    reference.kv_write,
    block_reference.rope_write,
    reference.paged_decode,
    reference.paged_prefill,
)
_SIZES = (64, 96, 128, 256)
"""Head sizes the kernels know; others are padded to the next."""


@functools.cache
def _paged(backend: str, dtype: str, size: int, groups: int) -> _Paged:
    """The kernels where they can run, else their twins."""
    if _why_not(backend, dtype, size, groups) is not None:
        return _TWINS
    from ..pallas_kernels import (  # slow to import
        hopper_decode,
        hopper_prefill,
        kv_write,
        rope_write,
    )

    return _Paged(
        kv_write.kv_write,
        rope_write.rope_write,
        hopper_decode.paged_decode,
        hopper_prefill.paged_prefill,
    )


@functools.cache
def _announce(dtype: str, size: int, reason: str | None) -> None:
    """Says once which attention runs, and why."""
    name = "Hopper kernels" if reason is None else f"the plain reference, since {reason}"
    log.info("attention over %s pages, heads of %d: %s", dtype, size, name)


def _why_not(backend: str, dtype: str, size: int, groups: int) -> str | None:
    """What keeps the kernels from running; None where nothing does."""
    reason = hopper.why_not(backend, dtype)
    if reason is not None:
        return reason
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
