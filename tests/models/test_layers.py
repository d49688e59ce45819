"""Layers against numpy, and the names of activations."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.typing import DTypeLike

from quire.errors import UnsupportedModelError
from quire.models import layers

X = np.random.default_rng(0).normal(2, 3, (5, 6)).astype(np.float32)
INPUT = jnp.asarray(X)


def make(dtype: DTypeLike = jnp.float32) -> dict:
    return {"dtype": dtype, "rngs": nnx.Rngs(0)}


def test_linear_keeps_the_orientation_of_checkpoints() -> None:
    layer = layers.Linear(6, 3, ("mlp", "embed"), bias=True, **make())
    weight = np.arange(18, dtype=np.float32).reshape(3, 6)
    assert layer.bias is not None
    layer.weight.set_value(jnp.asarray(weight))
    layer.bias.set_value(jnp.asarray([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(layer(INPUT), X @ weight.T + [1, 2, 3], rtol=1e-5)
    assert layer.weight.get_metadata()["axes"] == ("mlp", "embed")
    assert layer.bias.get_metadata()["axes"] == ("mlp",)


def test_matmul_works_in_the_type_of_the_weight() -> None:
    weight = jnp.ones((2, 6), jnp.bfloat16)
    assert layers.matmul(INPUT, weight).dtype == jnp.bfloat16
    assert layers.matmul(INPUT, weight, jnp.float32).dtype == jnp.float32


def test_rms_norm() -> None:
    layer = layers.RMSNorm(6, 1e-3, **make())
    layer.weight.set_value(jnp.arange(6.0))
    expected = X / np.sqrt((X**2).mean(1, keepdims=True) + 1e-3) * np.arange(6)
    np.testing.assert_allclose(layer(INPUT), expected, rtol=1e-5)


def test_rms_norm_is_float32_inside() -> None:
    layer = layers.RMSNorm(6, 1e-6, **make(jnp.float16))
    y = layer(jnp.full((1, 6), 1000.0, jnp.float16))
    assert y.dtype == jnp.float16
    np.testing.assert_allclose(y, 1.0, rtol=1e-3)


def test_layer_norm() -> None:
    layer = layers.LayerNorm(6, affine=True, **make())
    assert layer.weight is not None
    assert layer.bias is not None
    layer.weight.set_value(jnp.arange(6.0))
    layer.bias.set_value(jnp.ones(6))
    plain = (X - X.mean(1, keepdims=True)) / np.sqrt(X.var(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(layer(INPUT), plain * np.arange(6) + 1, rtol=1e-4, atol=1e-5)
    bare = layers.LayerNorm(6, affine=False, **make())
    np.testing.assert_allclose(bare(INPUT), plain, rtol=1e-4, atol=1e-5)


def test_embedding_looks_up_and_scores() -> None:
    layer = layers.Embedding(4, 6, **make(jnp.bfloat16))
    table = layer.weight[...]
    np.testing.assert_array_equal(layer(jnp.asarray([3, 0])), table[np.asarray([3, 0])])
    np.testing.assert_array_equal(layer(jnp.asarray([9])), table[3:])
    scores = layer.logits(jnp.ones((2, 6)))
    assert scores.dtype == jnp.float32
    assert scores.shape == (2, 4)


@pytest.mark.parametrize(
    ("name", "at_one"),
    [
        ("relu", 1.0),
        ("relu2", 1.0),
        ("silu", 0.7310586),
        ("swish", 0.7310586),
        ("gelu", 0.8413447),
        ("gelu_new", 0.8411920),
        ("gelu_fast", 0.8411920),
        ("gelu_pytorch_tanh", 0.8411920),
        ("quick_gelu", 0.8457958),
    ],
)
def test_activations(name: str, at_one: float) -> None:
    assert layers.check_activation(name) == name
    got = layers.ACTIVATIONS[name](jnp.asarray([1.0, -30.0]))
    np.testing.assert_allclose(got, [at_one, 0.0], atol=1e-6)


def test_unknown_activation_lists_what_is_supported() -> None:
    with pytest.raises(UnsupportedModelError, match=r"'gelu_neww'.*relu.*Did you mean 'gelu_new'"):
        layers.check_activation("gelu_neww")
