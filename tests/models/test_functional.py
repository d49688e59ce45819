"""Splitting, binding, and layers that share one program."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from quire.models import functional
from quire.models.block import Sum
from quire.models.llama import Llama, LlamaConfig, LlamaLayer
from quire.models.opt import OPT, OPTConfig, OPTLayer

HF = {
    "vocab_size": 16,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
}
CONFIG = LlamaConfig.from_hf(HF)
OPT_CONFIG = OPTConfig.from_hf(HF | {"ffn_dim": 12})


def new_model() -> Llama:
    return Llama(CONFIG, dtype=jnp.float32, rngs=nnx.Rngs(0))


def test_split_and_bind_are_inverse() -> None:
    model = new_model()
    graphdef, params = functional.split(model)
    assert params["layers.3.attention.qkv"].shape == (1, 4, 4, 8)
    assert params["embed.weight"] is model.embed.weight.get_value()
    tokens = jnp.arange(5)
    np.testing.assert_array_equal(
        functional.bind(graphdef, params)(tokens)[0],
        model(tokens)[0],
    )
    assert functional.split(functional.bind(graphdef, params))[0] == graphdef


def test_abstract_describes_what_split_gives() -> None:
    graphdef, shapes, axes = functional.abstract(Llama, CONFIG, jnp.bfloat16)
    real, params = functional.split(new_model())
    assert graphdef == real
    assert hash(graphdef) == hash(real)
    assert {name: array.shape for name, array in params.items()} == {
        name: shape.shape for name, shape in shapes.items()
    }
    assert {shape.dtype for shape in shapes.values()} == {jnp.dtype(jnp.bfloat16)}
    assert axes["layers.0.attention.qkv"] == ("kv_heads", "group", "head_dim", "embed")
    assert all(len(axes[name]) == len(shape.shape) for name, shape in shapes.items())


def test_abstract_uses_no_memory() -> None:
    huge = LlamaConfig.from_hf(HF | {"vocab_size": 10**9, "hidden_size": 2**14})
    _, shapes, _ = functional.abstract(Llama, huge, jnp.bfloat16)
    assert shapes["embed.weight"].size > 10**13


@pytest.mark.parametrize(
    ("model_cls", "layer_cls", "config"),
    [(Llama, LlamaLayer, CONFIG), (OPT, OPTLayer, OPT_CONFIG)],
)
def test_equal_layers_are_traced_once(
    model_cls: Any, layer_cls: Any, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    traces = []
    call = layer_cls.__call__

    def counted(self: Any, *args: Any) -> Any:
        traces.append(1)
        return call(self, *args)

    monkeypatch.setattr(layer_cls, "__call__", counted)
    graphdef, shapes, _ = functional.abstract(model_cls, config, jnp.float16)
    tokens = jax.ShapeDtypeStruct((7,), jnp.int32)
    lowered = jax.jit(lambda params, tokens: functional.bind(graphdef, params)(tokens)[0])
    lowered.lower(shapes, tokens)
    assert config.num_layers == 4
    assert len(traces) == 1


def test_layers_with_another_window_are_another_program() -> None:
    plain, windowed = (
        LlamaLayer(CONFIG, window, dtype=jnp.float32, rngs=nnx.Rngs(0)) for window in (None, 2)
    )
    x, rotary = jnp.ones((4, 8)), CONFIG.rope.cos_sin(jnp.arange(4))
    stream = (jnp.zeros_like(x), Sum(x * jnp.arange(4.0)[:, None]))
    streams = [
        functional.run_layer(layer, stream, None, rotary, None)[0] for layer in (plain, windowed)
    ]
    outputs = [x + total.y for x, total in streams]
    np.testing.assert_allclose(outputs[0][:2], outputs[1][:2], rtol=1e-6)
    assert np.abs(outputs[0][3] - outputs[1][3]).max() > 1e-6


def test_random_weights_follow_their_initialisers() -> None:
    config = LlamaConfig.from_hf(
        HF | {"vocab_size": 500, "attention_bias": True, "hidden_size": 64}
    )
    params = functional.init_random(Llama, config, jnp.bfloat16, jax.random.key(3))
    _, shapes, _ = functional.abstract(Llama, config, jnp.bfloat16)
    assert {name: array.shape for name, array in params.items()} == {
        name: shape.shape for name, shape in shapes.items()
    }
    assert (params["norm.weight"] == 1).all()
    assert (params["layers.1.attention.qkv_bias"] == 0).all()
    assert float(params["embed.weight"].astype(jnp.float32).std()) == pytest.approx(0.02, rel=0.05)
    layers = [params[f"layers.{i}.attention.qkv"] for i in (0, 1)]
    assert (layers[0] != layers[1]).any()


def test_random_weights_take_a_sharding_and_do_not_depend_on_it() -> None:
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    names = functional.abstract(Llama, CONFIG, jnp.float32)[1]
    key = jax.random.key(0)
    default, one, each = (
        functional.init_random(Llama, CONFIG, jnp.float32, key, sharding)
        for sharding in (None, device, dict.fromkeys(names, device))
    )
    for name, array in default.items():
        assert one[name].sharding == each[name].sharding == device
        np.testing.assert_array_equal(array, one[name])
        np.testing.assert_array_equal(array, each[name])
