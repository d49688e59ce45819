"""Products: types, residual, gate and bias."""

import jax
import jax.numpy as jnp
import numpy as np

from quire.models import products


def noise(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_products_are_in_the_type_of_the_weight() -> None:
    x, w = noise(0, 5, 8), noise(1, 7, 8).astype(jnp.bfloat16)
    assert products.matmul(x, w).dtype == jnp.bfloat16
    assert products.matmul(x, w, out_dtype=jnp.float32).dtype == jnp.float32


def test_a_residual_is_added() -> None:
    x, w, residual = noise(0, 5, 8), noise(1, 7, 8), noise(2, 5, 7)
    got = products.matmul(x, w, residual)
    np.testing.assert_allclose(got, np.asarray(x) @ np.asarray(w).T + residual, atol=1e-5)


def test_a_bias_comes_before_the_gate() -> None:
    x, w, bias = noise(0, 5, 8), noise(1, 2, 7, 8), noise(2, 2, 7)
    got = products.gated_matmul(x, w, bias, "relu")
    gate, up = (np.asarray(x) @ np.asarray(w[i]).T + bias[i] for i in range(2))
    np.testing.assert_allclose(got, np.maximum(gate, 0) * up, atol=1e-5)
