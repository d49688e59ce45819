"""LLaVA with and without pictures against what `transformers` computes."""

import re
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.models.conftest import (
    PagedFeatures,
    ReferenceModel,
    features_of,
    fill_params,
    forward,
    read_json,
)
from tests.models.llava_model import (
    EXPECTED,
    FOLDER,
    PICTURES,
    PROMPTS,
    ROWS_OF_PICTURE,
    encoded,
    fields,
    load,
    pixels,
)

from quire.errors import ModelConfigError, UnsupportedModelError
from quire.models import functional
from quire.models.clip import VIT_L_14_336, ClipConfig
from quire.models.llama import Llama
from quire.models.llava import Llava, LlavaConfig, canonical

TOLERANCE = 1e-4
CHUNK = 16
"""Tokens of a row in one step: less than a picture has."""


def shown(prompt: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens of a prompt, rows of its pictures from one run, and the row of each token."""
    tokens = EXPECTED[f"{prompt}/prompt"]
    names = tuple(map(str, EXPECTED[f"{prompt}/pictures"]))
    rows = encoded(load(), names, 4)  # one run's padding is another's pictures
    here = tokens == load().config.image_token
    assert here.sum() == len(names) * ROWS_OF_PICTURE
    return tokens, rows, np.where(here, np.cumsum(here) - 1, len(rows))


def over_pages(prompts: tuple[str, ...]) -> PagedFeatures:
    """Prompts over a pool full of NaN."""
    return PagedFeatures(load(), map(shown, prompts), CHUNK)


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_prepared_as_by_transformers(name: str) -> None:
    np.testing.assert_allclose(pixels(name), EXPECTED[f"{name}/pixels"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", PICTURES)
def test_features(name: str) -> None:
    rows = encoded(load(), (name,), 1)
    assert rows.shape == (ROWS_OF_PICTURE, 32)
    assert np.abs(rows - EXPECTED[f"{name}/features"]).max() < TOLERANCE


def test_pictures_of_one_run_are_as_alone_and_padding_changes_none() -> None:
    rows = encoded(load(), PICTURES[:3], 5).reshape(5, ROWS_OF_PICTURE, -1)
    assert np.isfinite(rows).all()
    for own, name in zip(rows, PICTURES[:3], strict=False):
        np.testing.assert_allclose(own, encoded(load(), (name,), 1), rtol=1e-5, atol=1e-5)


def test_a_run_of_padding_alone_is_finite() -> None:
    assert np.isfinite(encoded(load(), (), 2)).all()


def test_several_hidden_states_with_the_class_token_and_no_biases() -> None:
    changed = {
        "vision_feature_layer": [1, -1],
        "vision_feature_select_strategy": "full",
        "multimodal_projector_bias": False,
    }
    config = LlavaConfig.from_hf(fields() | changed)
    graphdef, shapes, _ = functional.abstract(Llava, config, jnp.float32)
    tensors = load_file(FOLDER / "model.safetensors")
    for layer in ("linear_1", "linear_2"):
        tensors[f"multi_modal_projector.{layer}.weight"] = EXPECTED[f"several/{layer}"]
        del tensors[f"multi_modal_projector.{layer}.bias"]
    params = fill_params(shapes, tensors, Llava.checkpoint_map(config))
    arrays = {name: jnp.asarray(array) for name, array in params.items()}
    rows = encoded(ReferenceModel(config, graphdef, arrays, ()), ("wide",), 1)
    assert rows.shape == (ROWS_OF_PICTURE + 1, 32)
    assert np.abs(rows - EXPECTED["several/features"]).max() < TOLERANCE


@pytest.mark.parametrize("prompt", PROMPTS)
def test_whole_prompts(prompt: str) -> None:
    tokens, rows, index = shown(prompt)
    model, args = load(), (jnp.asarray(tokens), features_of(rows, index))
    logits, _ = forward(model.graphdef, model.params, None, None, *args)
    assert np.abs(logits - EXPECTED[f"{prompt}/logits"]).max() < TOLERANCE


def test_paged_cache_in_chunks_that_split_pictures() -> None:
    """All prompts side by side, then decode to the reference tokens."""
    paged = over_pages(PROMPTS)
    logits = paged.fill()
    for prompt, own in zip(PROMPTS, logits, strict=True):
        assert np.abs(own - EXPECTED[f"{prompt}/logits"]).max() < TOLERANCE

    output = [[own[-1].argmax()] for own in logits]
    greedy = [EXPECTED[f"{prompt}/greedy"].tolist() for prompt in PROMPTS]
    while len(output[0]) < len(greedy[0]):
        steps = paged.step([np.asarray(tokens[-1:]) for tokens in output])
        for tokens, own in zip(output, steps, strict=True):
            tokens.append(own[-1].argmax())
    assert output == greedy


def test_text_alone_runs_as_llama() -> None:
    tokens, rows, index = shown("text")
    model = load()
    args = None, None, jnp.asarray(tokens)
    without, _ = forward(model.graphdef, model.params, *args, None)
    unused, _ = forward(model.graphdef, model.params, *args, features_of(rows, index))
    np.testing.assert_array_equal(without, unused)
    towers = tuple(f"{name}." for name in Llava.towers)
    params = {n: array for n, array in model.params.items() if not n.startswith(towers)}
    graphdef, shapes, _ = functional.abstract(Llama, model.config, jnp.float32)
    assert shapes.keys() == params.keys()
    np.testing.assert_array_equal(forward(graphdef, params, *args, None)[0], without)


def test_inputs_have_the_shapes_that_size_gives() -> None:
    encoder = Llava.encoders(load().config)["image"]
    picture = pixels("wide")
    inputs = encoder.inputs([picture], 3)
    shapes = encoder.abstract(3)
    assert {n: (a.shape, a.dtype) for n, a in inputs.items()} == {
        n: (s.shape, s.dtype) for n, s in shapes.items()
    }
    np.testing.assert_array_equal(inputs["pixels"][0], picture)
    assert not inputs["pixels"][1:].any()
    assert (encoder.units(picture), encoder.num_tokens(picture)) == (1, ROWS_OF_PICTURE)
    assert encoder.num_rows(3) == 3 * ROWS_OF_PICTURE == encoded(load(), (), 3).shape[0]


def test_pictures_must_be_as_large_as_the_tower_needs() -> None:
    encoder = Llava.encoders(load().config)["image"]
    match = r"shape \[3, 28, 35\].*takes \[3, 35, 35\]: crop_size in preproc"
    with pytest.raises(ModelConfigError, match=match):
        encoder.inputs([np.zeros((3, 28, 35), np.float32)], 1)


OLD = {
    "language_model.": "language_model.model.",
    "vision_tower.": "vision_tower.vision_model.",
}


@pytest.mark.parametrize("prefix", ["model.", ""])
@pytest.mark.parametrize("layout", ["newest", "vision_model"])
def test_names_of_newer_checkpoints(prefix: str, layout: str) -> None:
    """Without the prefix they are of the model without its head."""
    cmap = Llava.checkpoint_map(load().config)
    stored = {cmap.canonical(name) for name in load_file(FOLDER / "model.safetensors")}
    names = [str(name).removeprefix("model.") for name in EXPECTED["names"]]
    if layout == "vision_model":
        names = [name.replace("vision_tower.", OLD["vision_tower."]) for name in names]
    renamed = {n if n.startswith("lm_head.") else prefix + n for n in names}
    assert len(renamed) == len(names)
    assert {cmap.canonical(name) for name in renamed} == stored


def test_canonical_names_stay() -> None:
    for piece in Llava.checkpoint_map(load().config).pieces:
        assert canonical(piece.tensor) == piece.tensor


def test_known_extras() -> None:
    cmap = Llava.checkpoint_map(load().config)
    extras = (
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.language_model.rotary_emb.inv_freq",
        "vision_tower.vision_model.embeddings.position_ids",
        "vision_tower.vision_model.post_layernorm.weight",
        "model.vision_tower.encoder.layers.2.mlp.fc1.bias",
    )
    for name in extras:
        assert cmap.is_ignored(cmap.canonical(name)), name
    for name in ("vision_tower.encoder.layers.1.mlp.fc3.bias", "image_newline"):
        assert not cmap.is_ignored(cmap.canonical(name)), name


def test_the_file_that_newer_versions_save() -> None:
    assert LlavaConfig.from_hf(read_json(FOLDER / "config_v5.json")) == load().config
    renamed = fields()
    renamed["image_token_id"] = renamed.pop("image_token_index")
    assert LlavaConfig.from_hf(renamed) == load().config


def test_llava_1_5_7b() -> None:
    """The fields that its config.json has."""
    text = {
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "rms_norm_eps": 1e-05,
        "vocab_size": 32064,
    }
    vision = {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    }
    hf = {
        "architectures": ["LlavaForConditionalGeneration"],
        "image_token_index": 32000,
        "text_config": text,
        "vision_config": vision,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }
    config = LlavaConfig.from_hf(hf)
    assert (config.hidden_size, config.intermediate_size, config.num_layers) == (4096, 11008, 32)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (32, 32, 128)
    assert (config.max_model_len, config.vocab_size, config.image_token) == (4096, 32064, 32000)
    assert (config.norm_eps, config.tie_embeddings) == (1e-5, False)
    assert config.vision == ClipConfig.from_hf(VIT_L_14_336)
    assert (config.picture_rows, config.full, config.projector_bias) == (576, False, True)
    assert config.projector_activation == "gelu"


def test_what_a_file_leaves_out() -> None:
    hf = {
        "architectures": ["LlavaForConditionalGeneration"],
        "image_token_index": 31999,
        "text_config": None,
    }
    config = LlavaConfig.from_hf(hf, 100)
    assert (config.vocab_size, config.max_model_len, config.norm_eps) == (32000, 100, 1e-6)
    assert config.vision == ClipConfig.from_hf(VIT_L_14_336)
    assert LlavaConfig.from_hf(hf | {"vision_config": {}}).vision == ClipConfig.from_hf({})
    text = {"vocab_size": 32064, "hidden_size": None}
    config = LlavaConfig.from_hf({"text_config": text})
    assert (config.image_token, config.hidden_size) == (32000, 4096)
    with pytest.raises(ModelConfigError, match=r"max_model_len is 2049.*1 to 2048"):
        LlavaConfig.from_hf(hf, 2049)


@pytest.mark.parametrize("place", ["text", "top"])
def test_ties_that_either_part_of_the_file_names(place: str) -> None:
    hf = fields()
    (hf["text_config"] if place == "text" else hf)["tie_word_embeddings"] = True
    cmap = Llava.checkpoint_map(LlavaConfig.from_hf(hf))
    assert "head.weight" not in {piece.param for piece in cmap.pieces}
    assert cmap.is_ignored(cmap.canonical("language_model.lm_head.weight"))


def with_text(**changed: Any) -> dict[str, Any]:
    return fields() | {"text_config": fields()["text_config"] | changed}


@pytest.mark.parametrize(
    ("hf", "error", "match"),
    [
        (with_text(model_type="mistral"), UnsupportedModelError, "'mistral'; only 'llama'"),
        (with_text(model_type="qwen2"), UnsupportedModelError, "'qwen2'; only 'llama'"),
        (with_text(hidden_size=0), ModelConfigError, "'hidden_size'.*0.*at least 1"),
        (
            fields() | {"vision_config": {"model_type": "siglip_vision_model"}},
            UnsupportedModelError,
            "'siglip_vision_model'; only 'clip_vision_model'",
        ),
        (
            fields() | {"text_config": "llama"},
            ModelConfigError,
            "'text_config'.* is 'llama'; it must be an object",
        ),
        (
            fields() | {"vision_feature_select_strategy": "cls"},
            ModelConfigError,
            "'vision_feature_select_strategy'.*'cls'; allowed are 'default' and 'full'",
        ),
        (
            fields() | {"vision_feature_layer": 4},
            ModelConfigError,
            "'vision_feature_layer'.* is 4; it must be an integer from -4 to 3",
        ),
        (
            fields() | {"projector_hidden_act": "geglu"},
            UnsupportedModelError,
            "activation function 'geglu' is not supported",
        ),
        (
            fields() | {"image_token_index": 192},
            ModelConfigError,
            "'image_token_index'.* is 192; it must be below 192",
        ),
        (
            fields() | {"image_token_id": "<image>"},
            ModelConfigError,
            "'image_token_id'.* is '<image>'; it must be an integer",
        ),
    ],
)
def test_what_is_refused(hf: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        LlavaConfig.from_hf(hf)


def test_parameters_of_towers_can_be_told_by_their_names() -> None:
    """The rest are Llama's, and each weight of the towers has an axis that can be split."""
    config = load().config
    _, shapes, axes = functional.abstract(Llava, config, jnp.float32)
    towers = tuple(f"{name}." for name in Llava.towers)
    mine = {name for name in shapes if name.startswith(towers)}
    assert shapes.keys() - mine == functional.abstract(Llama, config, jnp.float32)[1].keys()
    split = re.compile(r".*\.(qkv|qkv_bias|out\.weight|up\.weight|up\.bias|down\.weight)")
    for name in filter(split.fullmatch, mine):
        assert {"vision_heads", "mlp"} & set(axes[name]), name
