"""Products: residual, gate and bias, and when the kernel for few rows takes over."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quire.models import hopper, products
from quire.pallas_kernels import reference


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
    np.testing.assert_allclose(got, reference.matmul(x, w, residual=residual), atol=1e-5)


@pytest.mark.parametrize(("activation", "gate"), [("silu", "silu"), ("gelu_new", "gelu_tanh")])
def test_the_kernel_and_the_names_of_configs_mean_the_same_gate(activation: str, gate: str) -> None:
    assert products._GATES[activation] == gate
    x, w = noise(0, 5, 8), noise(1, 2, 7, 8)
    got = products.gated_matmul(x, w, None, activation)
    np.testing.assert_allclose(got, reference.gated_matmul(x, w, activation=gate), atol=1e-5)


def test_a_bias_comes_before_the_gate() -> None:
    x, w, bias = noise(0, 5, 8), noise(1, 2, 7, 8), noise(2, 2, 7)
    got = products.gated_matmul(x, w, bias, "relu")
    gate, up = (np.asarray(x) @ np.asarray(w[i]).T + bias[i] for i in range(2))
    np.testing.assert_allclose(got, np.maximum(gate, 0) * up, atol=1e-5)


def test_the_kernel_serves_few_rows_of_16_bits_on_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    few = jnp.zeros((64, 4096), jnp.bfloat16)
    assert not products._kernel_fits(few, 6144, 4096)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(compute_capability="9.0")])
    monkeypatch.setattr(jax, "__version_info__", (0, 11, 2))
    assert products._kernel_fits(few, 6144, 4096)
    assert products._kernel_fits(few, 14336, 4096, gated=True)
    assert not products._kernel_fits(few[:1], 6144, 4096)
    assert not products._kernel_fits(jnp.zeros((256, 4096), jnp.bfloat16), 6144, 4096)
    assert not products._kernel_fits(few.astype(jnp.float32), 6144, 4096)
    assert not products._kernel_fits(few[None], 6144, 4096)


def test_why_not_names_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hopper.why_not("cpu", "bfloat16") == "JAX runs on cpu"
    monkeypatch.setattr(jax, "__version_info__", (0, 11, 1))
    assert "need jax 0.11.2" in (hopper.why_not("gpu", "bfloat16") or "")


@pytest.mark.parametrize("gated", [False, True])
def test_gradients_flow_through_the_kernel_seam(
    gated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the twins in the kernels' place, since only a GPU runs those."""
    monkeypatch.setattr(products.hopper_matmul, "matmul", reference.matmul)
    monkeypatch.setattr(products.hopper_matmul, "gated_matmul", reference.gated_matmul)
    x, w, residual = noise(0, 5, 8), noise(1, 2, 7, 8), noise(2, 5, 7)

    def through_kernel(x: jax.Array, w: jax.Array) -> jax.Array:
        if gated:
            return products._gated_kernel(x, w, "silu").sum()
        return (products._matmul_kernel(x, w[0], residual, jnp.dtype(jnp.float32)) ** 2).sum()

    def plain(x: jax.Array, w: jax.Array) -> jax.Array:
        if gated:
            return products.gated_matmul(x, w, None, "silu").sum()
        return (products.matmul(x, w[0], residual) ** 2).sum()

    for got, want in zip(
        jax.grad(through_kernel, (0, 1))(x, w), jax.grad(plain, (0, 1))(x, w), strict=True
    ):
        np.testing.assert_allclose(got, want, atol=1e-4)
