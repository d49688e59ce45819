"""The tower of Qwen2-VL against what `transformers` computes, and its runs against each other."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from tests.models.qwen2_vl_model import PICTURES, load_model, load_picture

from quire.errors import ModelConfigError, UnsupportedModelError
from quire.models.qwen2_vision import Qwen2VisionConfig

FIELDS: dict[str, Any] = {
    "depth": 3,
    "embed_dim": 24,
    "hidden_size": 32,
    "in_chans": 1,
    "mlp_ratio": 2,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 4,
    "temporal_patch_size": 3,
}


@pytest.mark.parametrize("name", PICTURES)
def test_features_agree(name: str) -> None:
    model, picture = load_model(), load_picture(name)
    features = model.encode(model.encoder.inputs([picture], 256))
    assert features.dtype == np.float32
    assert np.abs(features[: len(picture.features)] - picture.features).max() < 5e-5


def test_pictures_of_one_run_do_not_see_each_other() -> None:
    model, pictures = load_model(), [load_picture(name) for name in PICTURES]
    together = model.encode(model.encoder.inputs(pictures, 256))
    alone = [
        model.encode(model.encoder.inputs([picture], 256))[: len(picture.features)]
        for picture in pictures
    ]
    rows = np.concatenate(alone)
    assert len(rows) == sum(model.encoder.num_tokens(picture) for picture in pictures) == 48
    assert np.abs(together[:48] - rows).max() < 1e-5
    backwards = model.encode(model.encoder.inputs(pictures[::-1], 256))
    assert np.abs(backwards[:48] - np.concatenate(alone[::-1])).max() < 1e-5


def test_padding_changes_nothing() -> None:
    model, picture = load_model(), load_picture("wide")
    inputs = model.encoder.inputs([picture], 256)
    features = model.encode(inputs)
    assert np.isfinite(features).all()
    inputs["patches"][60:], inputs["factors"][60:] = 255, 9.0
    inputs["positions"][60:] = 7
    assert np.array_equal(model.encode(inputs)[:15], features[:15])
    more = model.encode(model.encoder.inputs([picture], 1024))
    assert more.shape == (256, 32)
    assert np.abs(more[:15] - features[:15]).max() < 1e-5


def test_a_run_of_padding_alone_is_finite() -> None:
    model = load_model()
    assert np.isfinite(model.encode(model.encoder.inputs([], 256))).all()


def test_half_precision_is_close() -> None:
    """Norms, rotation and softmax stay in float32."""
    model, picture = load_model(jnp.bfloat16), load_picture("tall")
    features = model.encode(model.encoder.inputs([picture], 256))
    assert features.dtype == jnp.bfloat16
    error = np.abs(features[:16].astype(np.float32) - picture.features)
    assert error.mean() < 0.02 * np.abs(picture.features).mean()


def test_config_from_fields() -> None:
    config = Qwen2VisionConfig.from_hf(FIELDS, 32)
    assert (config.depth, config.size, config.mlp_size, config.head_dim) == (3, 24, 48, 12)
    assert (config.patch_values, config.merged, config.out_size) == (1 * 3 * 4 * 4, 16, 32)
    assert (config.activation, config.rope_theta) == ("quick_gelu", 10000.0)
    newer = FIELDS | {"in_channels": 3, "rope_parameters": {"rope_theta": 100.0}}
    config = Qwen2VisionConfig.from_hf(newer, 32)
    assert (config.channels, config.rope_theta) == (3, 100.0)


def test_config_of_the_published_models_is_the_default() -> None:
    config = Qwen2VisionConfig.from_hf({}, 3584)
    assert (config.depth, config.size, config.num_heads, config.mlp_size) == (32, 1280, 16, 5120)
    assert (config.patch_values, config.merged) == (1176, 4)


@pytest.mark.parametrize(
    ("fields", "error", "text"),
    [
        ({"num_heads": 5}, ModelConfigError, r"'embed_dim' is 24, which 'num_heads' = 5 does not"),
        ({"num_heads": 4}, ModelConfigError, r"'embed_dim' is 24 and 'num_heads' 4.*multiple of 4"),
        ({"hidden_size": 24}, ModelConfigError, r"'hidden_size' of vision_config is 24.*be 32"),
        ({"patch_size": [4, 4]}, ModelConfigError, r"'patch_size'.*\[4, 4\].*integer"),
        ({"spatial_merge_size": 3}, UnsupportedModelError, r"'spatial_merge_size' 3.*1, 2, 4, 8"),
        ({"hidden_act": "swiglu"}, UnsupportedModelError, r"'swiglu' is not supported"),
    ],
)
def test_config_errors(fields: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Qwen2VisionConfig.from_hf(FIELDS | fields, 32)
