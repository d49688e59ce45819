"""The seam: what is written, and that the causal form equals the paged one."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quire.models.attention import attend, causal, write
from quire.models.batch import TokenBatch

TOKENS, HEADS, KV_HEADS, SIZE, PAGE = 11, 4, 2, 8, 4
OPTIONS = [
    {"scale": 0.4},
    {"scale": 0.4, "window": 3},
    {"scale": 2.0, "soft_cap": 3.0},
    {"scale": 2.0, "soft_cap": 3.0, "window": 5},
]


def random_qkv() -> tuple[jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    shapes = [(TOKENS, heads, SIZE) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    q, k, v = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    return q, k, v


def whole_row(decode: bool = False) -> TokenBatch:
    """Row 0 has all tokens, in pages 3, 1, 2."""
    at = np.arange(TOKENS)
    pages = np.asarray([3, 1, 2])
    return TokenBatch(
        positions=jnp.asarray(at),
        rows=jnp.zeros(TOKENS, jnp.int32),
        write_index=jnp.asarray(pages[at // PAGE] * PAGE + at % PAGE),
        page_table=jnp.asarray(pages)[None],
        lengths=jnp.asarray([TOKENS]),
        query_starts=jnp.asarray([0, TOKENS]),
        decode=decode,
    )


def empty_cache() -> tuple[jax.Array, jax.Array]:
    shape = (5, PAGE, KV_HEADS, SIZE)
    return jnp.zeros(shape), jnp.zeros(shape)


@pytest.mark.parametrize("options", OPTIONS)
def test_paged_equals_causal(options: dict[str, Any]) -> None:
    q, k, v = random_qkv()
    paged, cache = attend(q, k, v, empty_cache(), whole_row(), **options)
    plain, none = attend(q, k, v, None, None, **options)
    assert none is None
    assert cache is not None
    np.testing.assert_allclose(paged, plain, atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS)
def test_causal_form_is_attention(options: dict[str, Any]) -> None:
    q, k, v = (np.asarray(x, np.float64) for x in random_qkv())
    k, v = (np.repeat(x, HEADS // KV_HEADS, axis=1) for x in (k, v))
    got = causal(*random_qkv(), **options)
    for t in range(TOKENS):
        begin = max(0, t + 1 - options.get("window", TOKENS))
        scores = np.einsum("hd,khd->hk", q[t], k[begin : t + 1]) * options["scale"]
        if "soft_cap" in options:
            scores = options["soft_cap"] * np.tanh(scores / options["soft_cap"])
        weights = np.exp(scores)
        weights /= weights.sum(axis=1, keepdims=True)
        expected = np.einsum("hk,khd->hd", weights, v[begin : t + 1])
        np.testing.assert_allclose(got[t], expected, atol=1e-5)


def test_keys_and_values_land_at_the_write_index() -> None:
    q, k, v = random_qkv()
    _, cache = attend(q, k, v, empty_cache(), whole_row(), scale=1.0)
    assert cache is not None
    for pool, rows in zip(cache, (k, v), strict=True):
        np.testing.assert_array_equal(pool[3], rows[:4])
        np.testing.assert_array_equal(pool[1], rows[4:8])
        np.testing.assert_array_equal(pool[2, :3], rows[8:])
        assert not pool[0].any()
        assert not pool[4].any()
        assert not pool[2, 3].any()


def test_write_takes_the_type_of_the_pool_and_allows_the_null_page_twice() -> None:
    pool = jnp.zeros((2, PAGE, 1, 1), jnp.bfloat16)
    written = write(pool, jnp.ones((3, 1, 1)), jnp.asarray([0, 0, 5]))
    assert written.dtype == jnp.bfloat16
    assert written.reshape(-1).tolist() == [1, 0, 0, 0, 0, 1, 0, 0]


def test_the_pool_is_written_in_place_when_donated() -> None:
    pages = 4096

    def step(cache: Any, q: jax.Array, k: jax.Array, v: jax.Array, batch: TokenBatch) -> Any:
        return attend(q, k, v, cache, batch, scale=1.0)

    pool = jax.ShapeDtypeStruct((pages, PAGE, KV_HEADS, SIZE), jnp.float32)
    compiled = (
        jax.jit(step, donate_argnums=0)
        .lower((pool, pool), *random_qkv(), whole_row())
        .compile()
        .memory_analysis()
    )
    assert compiled is not None
    pool_bytes = pool.size * pool.dtype.itemsize
    assert compiled.alias_size_in_bytes == 2 * pool_bytes
    assert compiled.temp_size_in_bytes < pool_bytes // 4


def test_gradients_flow_through_the_causal_form() -> None:
    gradients = jax.grad(lambda qkv: causal(*qkv, scale=1.0, window=4).sum())(random_qkv())
    for gradient in gradients:
        assert jnp.isfinite(gradient).all()
    assert jnp.abs(gradients[2]).max() > 0
