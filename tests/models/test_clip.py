"""The tower of CLIP against `transformers`; `test_llava.py` has the model around it."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.models.conftest import fill_params
from tests.models.llava_model import EXPECTED, FOLDER, fields, pixels

from quire.errors import ModelConfigError, UnsupportedModelError
from quire.models import clip, functional
from quire.models.clip import VIT_L_14_336, ClipConfig, ClipTower

SOURCE = "vision_tower.vision_model"
TOLERANCE = 2e-5
STATES = EXPECTED["states"]
"""[layers + 1, 1 + P, E] of the first picture."""


@dataclasses.dataclass(frozen=True)
class Map:
    """As a `CheckpointMap` of the tower alone."""

    pieces: tuple[Any, ...]
    ignored: tuple[str, ...]

    def canonical(self, name: str) -> str:
        return name

    def is_ignored(self, name: str) -> bool:
        return any(re.fullmatch(pattern, name) for pattern in self.ignored)


def run(feature_layer: int | list[int], *names: str, dtype: Any = jnp.float32) -> np.ndarray:
    """The tower of a checkpoint that has no other tensors; unknown tensors fail."""
    config = ClipConfig.from_hf(fields()["vision_config"], feature_layer)
    graphdef, shapes, _ = functional.abstract(ClipTower, config, dtype)
    pieces = tuple(
        dataclasses.replace(piece, param=piece.param.removeprefix("vision."))
        for piece in clip.pieces(config, SOURCE, "vision")
    )
    tensors = load_file(FOLDER / "model.safetensors")
    tensors = {name: tensor for name, tensor in tensors.items() if name.startswith(SOURCE)}
    params = fill_params(shapes, tensors, Map(pieces, clip.ignored(config, SOURCE)))

    @jax.jit
    def tower(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        return functional.bind(graphdef, params)(x)

    arrays = {name: jnp.asarray(array, dtype) for name, array in params.items()}
    return np.asarray(tower(arrays, jnp.asarray(np.stack([pixels(name) for name in names]))))


@pytest.mark.parametrize("layer", [-4, -2, 3])
def test_one_hidden_state(layer: int) -> None:
    [states] = run(layer, "wide")
    assert np.abs(states - STATES[layer]).max() < TOLERANCE


def test_several_hidden_states_stand_side_by_side_in_the_order_given() -> None:
    order = [-1, 0, 2, -4, 1, -1, -3, 3, -2]
    [states] = run(order, "wide")
    assert np.abs(states - np.concatenate(STATES[order], -1)).max() < TOLERANCE


def test_pictures_do_not_see_each_other() -> None:
    both = run(-1, "tall", "wide")
    np.testing.assert_allclose(both[1], run(-1, "wide")[0], rtol=0, atol=1e-5)
    assert np.abs(both[1] - both[0]).max() > 0.1


def test_16_bit_weights_give_16_bit_states() -> None:
    [states] = run(-1, "wide", dtype=jnp.bfloat16)
    assert states.dtype == jnp.bfloat16
    error = np.abs(states.astype(np.float32) - STATES[-1])
    assert error.max() < 0.05 * np.abs(STATES[-1]).max()


def test_defaults_are_those_of_vit_b_32() -> None:
    assert ClipConfig.from_hf({}, -1) == ClipConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_heads=12,
        image_size=224,
        patch_size=32,
        activation="quick_gelu",
        norm_eps=1e-5,
        feature_layers=(12,),
    )
    assert ClipConfig.from_hf({"hidden_size": None, "num_channels": None}, -1).hidden_size == 768


def test_sizes_of_vit_l_14_336() -> None:
    config = ClipConfig.from_hf(VIT_L_14_336)
    assert (config.num_patches, config.head_dim, config.feature_size) == (576, 64, 1024)
    assert config.num_layers == 23  # the last one of 24 is not needed
    assert ClipConfig.from_hf(VIT_L_14_336, [-1, 3]).num_layers == 24
    assert ClipConfig.from_hf(VIT_L_14_336, [-1, 3]).feature_size == 2048


@pytest.mark.parametrize("layer", [4, -5, True, "-2", [], [1, 4], [None], {"a": 1}, 1.0])
def test_there_must_be_such_a_hidden_state(layer: Any) -> None:
    expected = rf"'vision_feature_layer'.* is {re.escape(repr(layer))}; .* from -4 to 3, or a list"
    with pytest.raises(ModelConfigError, match=expected):
        ClipConfig.from_hf(fields()["vision_config"], layer)


@pytest.mark.parametrize(
    ("changed", "error", "match"),
    [
        ({"model_type": "siglip_vision_model"}, UnsupportedModelError, "'siglip_vision_model'"),
        ({"num_channels": 1}, UnsupportedModelError, "num_channels 1; only 3"),
        ({"hidden_act": "quick_relu"}, UnsupportedModelError, "'quick_relu' is not supported"),
        ({"image_size": 36}, ModelConfigError, "'image_size' is 36, which 'patch_size' = 7"),
        ({"image_size": [35, 35]}, ModelConfigError, r"'image_size'.*\[35, 35\].*integer"),
        ({"num_attention_heads": 5}, ModelConfigError, "'hidden_size' is 32, which"),
        ({"num_hidden_layers": 0}, ModelConfigError, "'num_hidden_layers'.*0.*at least 1"),
        ({"layer_norm_eps": "1e-5"}, ModelConfigError, "'layer_norm_eps'.*must be a number"),
    ],
)
def test_other_towers_are_refused(
    changed: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        ClipConfig.from_hf(fields()["vision_config"] | changed)


def test_tensors_that_are_not_needed() -> None:
    config = ClipConfig.from_hf(VIT_L_14_336, 12)
    extras = Map((), clip.ignored(config, "a.b"))
    unused = ("embeddings.position_ids", "post_layernorm.bias", "encoder.layers.12.mlp.fc1.weight")
    for name in (*unused, "encoder.layers.23.layer_norm1.bias"):
        assert extras.is_ignored(f"a.b.{name}")
    assert not extras.is_ignored("a.b.encoder.layers.1.self_attn.rotary_emb.inv_freq")
    assert not extras.is_ignored("a.b.encoder.layers.11.mlp.fc1.weight")
    assert not extras.is_ignored("axb.encoder.layers.12.mlp.fc1.weight")
    for piece in clip.pieces(config, "a.b", "vision"):
        assert not extras.is_ignored(piece.tensor)
