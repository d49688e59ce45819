"""Writing K and V into the pool: the kernel against its twin, bitwise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quire.pallas_kernels import reference
from quire.pallas_kernels.kv_write import kv_write

pytestmark = pytest.mark.skipif(
    jax.__version_info__ < (0, 11, 2), reason="Mosaic kernels need jax 0.11.2"
)
ON = [pytest.param(True, id="interpreted"), pytest.param(False, id="gpu", marks=pytest.mark.gpu)]


def noise(seed: int, *shape: int, dtype: str) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@pytest.mark.parametrize("interpret", ON)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    ("tokens", "heads", "width"), [(1, 8, 128), (12, 2, 64), (64, 1, 256), (7, 3, 96)]
)
def test_tokens_go_where_the_index_says_and_nowhere_else(
    interpret: bool, dtype: str, tokens: int, heads: int, width: int
) -> None:
    k_pool, v_pool = (noise(seed, 12, 16, heads, width, dtype=dtype) for seed in (0, 1))
    k, v = (noise(seed, tokens, heads, width, dtype=dtype) for seed in (2, 3))
    index = jnp.asarray(np.random.default_rng(4).permutation(192)[:tokens], jnp.int32)
    got = jax.jit(functools.partial(kv_write, interpret=interpret))(k_pool, v_pool, k, v, index)
    want = reference.kv_write(k_pool, v_pool, k, v, index)
    for one, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.gpu
def test_padding_may_share_the_null_page() -> None:
    pools = [jnp.zeros((4, 16, 8, 128), jnp.bfloat16) for _ in range(2)]
    rows = [noise(seed, 256, 8, 128, dtype="bfloat16") for seed in (2, 3)]
    index = jnp.where(jnp.arange(256) < 40, jnp.arange(256) + 20, 0)
    got = jax.jit(kv_write, donate_argnums=(0, 1))(*pools, *rows, index)
    for pool, given in zip(got, rows, strict=True):
        slots = np.asarray(pool).reshape(64, 8, 128)
        np.testing.assert_array_equal(slots[20:60], np.asarray(given)[:40])
        assert not slots[16:20].any()
