"""The seam around attention: what it computes, and when kernels take over."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from quire.models import block, hopper
from quire.models.layers import RMSNorm
from quire.pallas_kernels import block_reference, hopper_matmul, row_matmul, row_norm

needs_mosaic = pytest.mark.skipif(
    jax.__version_info__ < (0, 11, 2), reason="Mosaic kernels need jax 0.11.2"
)


def noise(seed: int, *shape: int, dtype: str = "float32") -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@pytest.fixture
def on_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretends to run there. Only the choice can be tested without it, not what is chosen."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(compute_capability="9.0")])
    monkeypatch.setattr(jax, "__version_info__", (0, 11, 2))


@pytest.mark.parametrize(("activation", "gate"), [("silu", "silu"), ("gelu_new", "gelu_tanh")])
def test_names_of_configs_and_kernels_mean_the_same(activation: str, gate: str) -> None:
    assert block._GATES[activation] == gate
    x, w = noise(0, 5, 8), noise(1, 2, 7, 8)
    got = block.gated_matmul(x, w, None, activation)
    want = block_reference.gated_matmul(x, w, activation=gate)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_bias_comes_before_the_gate() -> None:
    x, w, bias = noise(0, 5, 8), noise(1, 2, 7, 8), noise(2, 2, 7)
    got = block.gated_matmul(x, w, bias, "relu")
    gate, up = (np.asarray(x) @ np.asarray(w[i]).T + bias[i] for i in range(2))
    np.testing.assert_allclose(got, np.maximum(gate, 0) * up, atol=1e-5)


def test_add_norm_agrees_with_the_twin() -> None:
    norm = RMSNorm(8, 1e-5, dtype=jnp.float32, rngs=nnx.Rngs(0))
    norm.weight.set_value(noise(2, 8))
    x, y = noise(0, 3, 8), noise(1, 3, 8)
    for got, want in zip(
        block.add_norm(norm, x, block.Sum(y)),
        block_reference.add_rms_norm(x, y, norm.weight[...], 1e-5),
        strict=True,
    ):
        np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.usefixtures("on_hopper")
def test_kernels_take_over_by_type_and_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def kernel(x: jax.Array, *_: object, **__: object) -> jax.Array:
        taken.append(x.shape[0])
        return x

    monkeypatch.setattr(row_norm, "add_rms_norm", kernel)
    monkeypatch.setattr(hopper_matmul, "gated_matmul", kernel)
    monkeypatch.setattr(
        hopper_matmul, "matmul", lambda x, w: jnp.zeros((len(kernel(x)), len(w)), x.dtype)
    )
    for kernels in (row_matmul.gated_matmul, row_matmul.matmul):
        monkeypatch.setattr(row_matmul, kernels.__name__, getattr(hopper_matmul, kernels.__name__))
    norm = RMSNorm(1024, 1e-5, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    w = jnp.zeros((2, 512, 1024), jnp.bfloat16)
    for rows in (1, 8, 64, 1024):
        x = jnp.zeros((rows, 1024), jnp.bfloat16)
        block.add_norm(norm, x, block.Sum(x))
        block.gated_matmul(x, w, None, "silu")
        block.gated_matmul(x, w, None, "relu")
        block.gated_matmul(x.astype(jnp.float32), w, None, "silu")
    assert taken == [1, 1, 1, 8, 64, 64, 64, 1024]  # all three, a norm, all three, a gated product


@needs_mosaic
@pytest.mark.usefixtures("on_hopper")
@pytest.mark.parametrize("gated", [False, True])
def test_a_norm_within_a_product_is_that_before_it(
    monkeypatch: pytest.MonkeyPatch, gated: bool
) -> None:
    for name in ("norm_matmul", "norm_gated_matmul"):
        kernel = functools.partial(getattr(row_matmul, name), interpret=True)
        monkeypatch.setattr(row_matmul, name, kernel)
    norm = RMSNorm(1024, 1e-5, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    norm.weight.set_value(noise(2, 1024, dtype="bfloat16"))
    x, y = (noise(n, 1, 1024, dtype="bfloat16") for n in range(2))
    w = noise(3, 2, 12, 1024, dtype="bfloat16") * jnp.bfloat16(1 / 32)
    if gated:
        got = block.norm_gated_matmul(norm, (x, block.Sum(y)), w, None, "silu")
    else:
        total, (product, *rest) = block.norm_project(norm, (x, block.Sum(y)), w, None, None)
        got = total, product
        assert rest == [None, None]
    total, normed = block_reference.add_rms_norm(x, y, norm.weight[...], 1e-5)
    want = block_reference.matmul(normed, w.reshape(-1, 1024)).reshape(1, 2, 12)
    if gated:
        want = block_reference.gated_matmul(normed, w, activation="silu")
    assert got[1].shape == want.shape
    for one, other in zip(got, (total, want), strict=True):
        values = (np.asarray(z, np.float32) for z in (one, other))
        np.testing.assert_allclose(*values, rtol=1e-2, atol=1e-2)


@pytest.mark.usefixtures("on_hopper")
def test_which_products_norm() -> None:
    x, w = jnp.zeros((1, 1024), jnp.bfloat16), jnp.zeros((1, 512, 1024), jnp.bfloat16)
    update = block_reference.Update(jnp.zeros((1, 1, 1, 1)), jnp.zeros((1, 1, 1024)), x[:, 0])
    assert block._norms_in_product((x, block.Sum(x)), w)
    assert not block._norms_in_product((x, block.Sum(x, update)), w)
    assert not block._norms_in_product((x, block.Sum(x.astype(jnp.float32))), w)
    two = jnp.zeros((2, 1024), jnp.bfloat16)
    assert not block._norms_in_product((two, block.Sum(two)), w)
    odd = jnp.zeros((1, 1000), jnp.bfloat16)
    assert not block._norms_in_product((odd, block.Sum(odd)), w[:, :, :1000])


def test_why_not_names_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hopper.why_not("cpu", "bfloat16") == "JAX runs on cpu"
    monkeypatch.setattr(jax, "__version_info__", (0, 11, 1))
    assert "need jax 0.11.2" in (hopper.why_not("gpu", "bfloat16") or "")


def test_gradients_of_a_kernel_are_those_of_its_twin() -> None:
    """With a twin in the kernel's place, since only a GPU runs that."""
    run = hopper.with_gradient(
        block_reference.gated_matmul, block_reference.gated_matmul, activation="silu"
    )
    x, w = noise(0, 5, 8), noise(1, 2, 7, 8)
    got = jax.grad(lambda x, w: run(x, w).sum(), (0, 1))(x, w)
    want = jax.grad(lambda x, w: block.gated_matmul(x, w, None, "silu").sum(), (0, 1))(x, w)
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
