"""The tower of SigLIP against `transformers`; `test_llava_onevision.py` has the model around it."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.models.conftest import fill_params
from tests.models.llava_onevision_model import EXPECTED, FOLDER, fields

from quire.errors import ModelConfigError, UnsupportedModelError
from quire.models import functional, siglip
from quire.models.checkpoint_map import CheckpointMap
from quire.models.siglip import SiglipConfig, SiglipTower

SOURCE = "vision_tower.vision_model"
STATES = EXPECTED["states"]
"""[layers + 1, P, E] of the whole of a picture."""
PIXELS = EXPECTED["tall/pixels"]


def run(feature_layer: int | list[int], pixels: np.ndarray, dtype: Any = jnp.float32) -> np.ndarray:
    """The tower of a checkpoint that has no other tensors but those of a pooling head."""
    config = SiglipConfig.from_hf(fields()["vision_config"], feature_layer)
    graphdef, shapes, _ = functional.abstract(SiglipTower, config, dtype)
    pieces = tuple(
        dataclasses.replace(piece, param=piece.param.removeprefix("vision."))
        for piece in siglip.pieces(config, SOURCE, "vision")
    )
    tensors = load_file(FOLDER / "model.safetensors")
    tensors = {name: tensor for name, tensor in tensors.items() if name.startswith(SOURCE)}
    tensors |= {f"{SOURCE}.head.probe": np.zeros(1), f"{SOURCE}.head.mlp.fc1.bias": np.zeros(1)}
    params = fill_params(shapes, tensors, CheckpointMap(pieces, siglip.ignored(config, SOURCE)))

    @jax.jit
    def tower(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        return functional.bind(graphdef, params)(x)

    arrays = {name: jnp.asarray(array, dtype) for name, array in params.items()}
    return np.asarray(tower(arrays, jnp.asarray(pixels)))


@pytest.mark.parametrize("layer", [-4, -2, -1, 2])
def test_one_hidden_state(layer: int) -> None:
    [states] = run(layer, PIXELS[:1])
    assert np.abs(states - STATES[layer]).max() < 2e-5


def test_several_hidden_states_stand_side_by_side_in_the_order_given() -> None:
    [states] = run([-1, 0, 2], PIXELS[:1])
    assert np.abs(states - np.concatenate(STATES[[-1, 0, 2]], -1)).max() < 2e-5


def test_pictures_do_not_see_each_other() -> None:
    both = run(-1, PIXELS[:2])
    np.testing.assert_allclose(both[1], run(-1, PIXELS[1:2])[0], rtol=0, atol=1e-5)
    assert np.abs(both[1] - both[0]).max() > 0.1


def test_what_is_beyond_whole_patches_is_not_seen() -> None:
    seen, changed = PIXELS[:1].copy(), PIXELS[:1].copy()
    changed[..., 35:, :] = changed[..., 35:] = 9.0
    seen[..., 34, 34] += 9.0
    states = run(-1, PIXELS[:1])
    np.testing.assert_array_equal(run(-1, changed), states)
    assert np.abs(run(-1, seen) - states).max() > 0.01


def test_16_bit_weights_give_16_bit_states() -> None:
    [states] = run(-1, PIXELS[:1], jnp.bfloat16)
    assert states.dtype == jnp.bfloat16
    assert np.abs(states.astype(np.float32) - STATES[-1]).mean() < 0.05


def test_so400m() -> None:
    """The fields that the vision_config of LLaVA-OneVision has."""
    config = SiglipConfig.from_hf(
        {
            "hidden_size": 1152,
            "image_size": 384,
            "intermediate_size": 4304,
            "model_type": "siglip_vision_model",
            "num_attention_heads": 16,
            "num_hidden_layers": 26,
            "patch_size": 14,
            "vision_use_head": False,
        }
    )
    assert (config.along, config.num_patches, config.head_dim) == (27, 729, 72)
    assert (config.num_layers, config.feature_size) == (26, 1152)
    assert (config.activation, config.norm_eps) == ("gelu_pytorch_tanh", 1e-6)


@pytest.mark.parametrize(
    ("changed", "error", "match"),
    [
        ({"model_type": "clip_vision_model"}, UnsupportedModelError, "'clip_vision.*only 'siglip"),
        ({"num_channels": 1}, UnsupportedModelError, "num_channels 1; only 3"),
        ({"num_attention_heads": 5}, ModelConfigError, "'hidden_size' is 24, which 'num_att.*5"),
        ({"patch_size": 0}, ModelConfigError, "'patch_size'.* is 0; it must be an integer"),
        ({"image_size": [38, 38]}, ModelConfigError, "'image_size'.*must be an integer"),
        ({"num_hidden_layers": 0}, ModelConfigError, "'num_hidden_layers'.* is 0"),
        ({"hidden_act": "tanh"}, UnsupportedModelError, "'tanh' is not supported"),
    ],
)
def test_what_is_refused(changed: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        SiglipConfig.from_hf(fields()["vision_config"] | changed)


def test_known_extras_are_only_those() -> None:
    config = SiglipConfig.from_hf(fields()["vision_config"], -2)
    patterns = siglip.ignored(config, SOURCE)

    def is_ignored(name: str) -> bool:
        return any(re.fullmatch(pattern, f"{SOURCE}.{name}") for pattern in patterns)

    assert is_ignored("head.attention.in_proj_weight")
    assert is_ignored("post_layernorm.bias")
    assert is_ignored("encoder.layers.2.mlp.fc1.weight")
    assert not is_ignored("encoder.layers.1.mlp.fc1.weight")
    assert not is_ignored("embeddings.class_embedding")
