"""LLaVA-OneVision with and without pictures and videos against what `transformers` computes."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.models.conftest import PagedFeatures, features_of, forward, read_json
from tests.models.llava_onevision_model import (
    EXPECTED,
    FOLDER,
    ONEVISION,
    PICTURES,
    PROMPTS,
    VIDEOS,
    encoded,
    fields,
    frames,
    images,
    load,
    picture_encoder,
    tiles,
    video_encoder,
    videos,
)

from quire.errors import ModelConfigError, UnsupportedModelError
from quire.models import functional
from quire.models.llava_onevision import LlavaOnevision, LlavaOnevisionConfig, canonical
from quire.models.qwen2 import Qwen2
from quire.models.siglip import SiglipConfig
from quire.models.squares import Blend, blended
from quire.multimodal.llava_onevision import Frames
from quire.multimodal.tiles import Tiles

TOLERANCE = 1e-4
VIDEO_TOLERANCE = 0.01
"""Of a feature's size: the reference scales frames by a library that rounds some otherwise."""
CHUNK = 24
"""Tokens of a row in one step: less than a picture has."""
SIZES = {"wide": 5, "tall": 3, "small": 2, "thin": 4, "large": 10}
"""Tiles."""


def reference_frames(name: str) -> Frames:
    """A video of which the reference's own pixels are known."""
    return Frames(EXPECTED[f"{name}/pixels"])


def rows_of(prompt: str) -> list[np.ndarray]:
    """Features of a prompt's pictures, from one run, and of its videos."""
    tiled = prompt != "several"
    names = ONEVISION.names(prompt)
    pictures = [tiles(name, tiled) for name in names if name in PICTURES]
    units = sum(len(one.pixels) for one in pictures)
    encoder = picture_encoder()
    rows = encoded("image", pictures, units + 1)[: sum(map(encoder.num_tokens, pictures))]
    return [rows, *(EXPECTED[f"{name}/features"] for name in names if name in VIDEOS)]


def shown(prompt: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `PagedFeatures` takes a prompt."""
    return ONEVISION.shown(prompt, rows_of(prompt))


@pytest.mark.parametrize("name", ["tall", "small"])
def test_pictures_are_prepared_as_by_transformers(name: str) -> None:
    np.testing.assert_allclose(tiles(name).pixels, EXPECTED[f"{name}/pixels"], rtol=0, atol=1e-5)


def test_videos_are_prepared_as_by_transformers() -> None:
    """But for the rounding of two libraries that scale."""
    error = np.abs(frames("clip").pixels - EXPECTED["clip/pixels"])
    level = 1 / 255 / 0.26130258
    assert error.max() < 1.01 * level
    assert (error > 0.5 * level).mean() < 0.02


@pytest.mark.parametrize("name", PICTURES)
def test_features_of_pictures(name: str) -> None:
    """The large one is scaled down, and others lose padding above or beside them."""
    medium, expected = tiles(name), EXPECTED[f"{name}/features"]
    assert len(medium.pixels) == SIZES[name]
    encoder = picture_encoder()
    assert encoder.num_tokens(medium) == len(expected)
    rows = encoded("image", [medium], SIZES[name])
    assert rows.shape == (encoder.num_rows(SIZES[name]), 32)
    assert np.abs(rows[: len(expected)] - expected).max() < TOLERANCE


def test_the_fixture_scales_one_down_and_cuts_padding_off_both_ways() -> None:
    kept, shown = tiles("large").kept, tiles("large").shown
    assert kept[0] * kept[1] > 3 * 25 * 1.21
    assert shown[0] * shown[1] <= 3 * 25
    assert tiles("wide").kept == tiles("wide").shown == (6, 10)
    assert tiles("thin").kept[0] < 5 * tiles("thin").grid[0]
    assert tiles("tall").kept[1] < 5 * tiles("tall").grid[1]


@pytest.mark.parametrize("name", PICTURES)
def test_features_of_one_of_several_pictures(name: str) -> None:
    """As a padded square, and the feature that ends lines."""
    expected = EXPECTED[f"{name}/untiled"]
    assert len(expected) == 26
    rows = encoded("image", [tiles(name, tiled=False)], 1)
    assert np.abs(rows[:26] - expected).max() < TOLERANCE


def test_features_of_a_video() -> None:
    expected = EXPECTED["clip/features"]
    rows = encoded("video", [reference_frames("clip")], 3)
    assert np.abs(rows[: len(expected)] - expected).max() < TOLERANCE


@pytest.mark.parametrize("name", VIDEOS)
def test_features_of_a_video_as_it_is_prepared(name: str) -> None:
    expected = EXPECTED[f"{name}/features"]
    rows = encoded("video", [frames(name)], 6)[: len(expected)]
    assert np.abs(rows - expected).mean() < VIDEO_TOLERANCE * np.abs(expected).mean()
    np.testing.assert_allclose(rows[-1], expected[-1], rtol=0, atol=1e-6)


def test_frames_that_are_encoded_apart_are_as_together() -> None:
    encoder = video_encoder()
    parts = encoder.parts(frames("film"))
    assert [encoder.num_tokens(part) for part in parts] == [9, 9, 9, 9, 10]
    assert [encoder.units(part) for part in parts] == [1] * 5
    whole = encoded("video", [frames("film")], 5)[:46]
    first, last = encoded("video", parts[:3], 4)[:27], encoded("video", parts[3:], 4)[:19]
    np.testing.assert_allclose(np.concatenate([first, last]), whole, rtol=0, atol=1e-5)


def test_pictures_of_one_run_are_as_alone_and_padding_changes_none() -> None:
    names = ("small", "large", "thin")
    media = [*map(tiles, names), tiles("wide", tiled=False)]
    encoder = picture_encoder()
    rows = encoded("image", media, 20)
    assert np.isfinite(rows).all()
    ends = np.cumsum(list(map(encoder.num_tokens, media)))
    for medium, own in zip(media, np.split(rows, ends), strict=False):
        alone = encoded("image", [medium], len(medium.pixels))
        np.testing.assert_allclose(own, alone[: len(own)], rtol=1e-5, atol=1e-5)
    assert not rows[ends[-1] :].any()


def test_a_run_of_padding_alone_is_finite() -> None:
    assert np.isfinite(encoded("image", [], 2)).all()
    assert np.isfinite(encoded("video", [], 2)).all()


def test_16_bit_weights_blend_in_32_bits() -> None:
    rows = jnp.asarray([[1.0], [1.0078125]], jnp.bfloat16)
    index, weight = jnp.asarray([[0, 1, 1, 0]]), jnp.asarray([[0.5, 0.5, 0.25, -0.25]])
    out = blended(rows, index, weight)
    assert (out.dtype, float(out[0, 0])) == (jnp.bfloat16, 1.0078125)


@pytest.mark.parametrize(("height", "width"), [(3, 4), (7, 9), (2, 1), (1, 12), (10, 3)])
def test_blends_scale_as_interpolation_does(height: int, width: int) -> None:
    """JAX's own, without smoothing, of a grid with holes in its numbers."""
    values = np.random.default_rng(0).normal(0, 1, (400, 2)).astype(np.float32)
    grid = np.random.default_rng(1).permutation(400)[:63].reshape(7, 9)
    blend = Blend.joined([Blend.scaled(grid, height, width)])
    out = blended(jnp.asarray(values), jnp.asarray(blend.index), jnp.asarray(blend.weight))
    shape = (height, width, 2)
    expected = jax.image.resize(values[grid], shape, "bilinear", antialias=False)
    np.testing.assert_allclose(out.reshape(shape), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_whole_prompts(prompt: str) -> None:
    tokens, rows, index = shown(prompt)
    model, args = load(), (jnp.asarray(tokens), features_of(rows, index))
    logits, _ = forward(model.graphdef, model.params, None, None, *args)
    assert np.abs(logits - EXPECTED[f"{prompt}/logits"]).max() < TOLERANCE


@pytest.mark.parametrize("prompts", [PROMPTS[:3], PROMPTS[3:]])
def test_paged_cache_in_chunks_that_split_media(prompts: tuple[str, ...]) -> None:
    """Prompts side by side over a pool full of NaN, then decode to the reference tokens."""
    paged = PagedFeatures(load(), map(shown, prompts), CHUNK)
    logits = paged.fill()
    for prompt, own in zip(prompts, logits, strict=True):
        assert np.abs(own - EXPECTED[f"{prompt}/logits"]).max() < TOLERANCE

    output = [[own[-1].argmax()] for own in logits]
    greedy = [EXPECTED[f"{prompt}/greedy"].tolist() for prompt in prompts]
    while len(output[0]) < len(greedy[0]):
        steps = paged.step([np.asarray(tokens[-1:]) for tokens in output])
        for tokens, own in zip(output, steps, strict=True):
            tokens.append(own[-1].argmax())
    assert output == greedy


def test_text_alone_runs_as_qwen_2() -> None:
    tokens = jnp.asarray(EXPECTED["text/prompt"])
    model = load()
    expected, _ = forward(model.graphdef, model.params, None, None, tokens, None)
    towers = tuple(LlavaOnevision.towers)
    params = {n: array for n, array in model.params.items() if n.split(".")[0] not in towers}
    graphdef, shapes, _ = functional.abstract(Qwen2, model.config, jnp.float32)
    assert shapes.keys() == params.keys()
    logits, _ = forward(graphdef, params, None, None, tokens, None)
    np.testing.assert_array_equal(logits, expected)


@pytest.mark.parametrize("kind", ["image", "video"])
def test_inputs_have_the_shapes_that_size_gives(kind: str) -> None:
    encoder: Any = picture_encoder() if kind == "image" else video_encoder()
    medium: Any = tiles("thin") if kind == "image" else frames("clip")
    inputs, shapes = encoder.inputs([medium], 6), encoder.abstract(6)
    assert {n: (a.shape, a.dtype) for n, a in inputs.items()} == {
        n: (s.shape, s.dtype) for n, s in shapes.items()
    }
    used = encoder.units(medium)
    np.testing.assert_array_equal(inputs["pixels"][:used], medium.pixels)
    assert not inputs["pixels"][used:].any()
    tokens = encoder.num_tokens(medium)
    np.testing.assert_allclose(inputs["weight"][:tokens].sum(1), 1, rtol=0, atol=1e-6)
    assert not inputs["weight"][tokens:].any()
    assert encoder.num_rows(6) == encoded(kind, [], 6).shape[0]
    assert encoder.num_patches(6) == 6 * 25


def test_any_picture_fits_into_the_largest_run() -> None:
    """Whatever its lines, of which a grid of one column has most."""
    encoder = picture_encoder()
    assert encoder.size_for(1) == 10 == load().config.most_tiles
    assert encoder.size_for(25 * 64 + 24) == 64
    column = Tiles(np.zeros((4, 3, 38, 38), np.float32), (3, 1), (15, 5), (15, 5))
    assert encoder.num_tokens(column) <= encoder.num_rows(4)
    assert len(encoded("image", [column] * 3, 12)) == encoder.num_rows(12)
    assert images().max_tokens <= encoder.num_rows(encoder.size_for(images().max_tokens))


def test_as_many_frames_fit_as_have_so_many_tokens() -> None:
    encoder = video_encoder()
    assert [encoder.size_for(tokens) for tokens in (1, 46, 90, 100)] == [4, 5, 10, 11]
    parts = encoder.parts(frames("film"))[-1:] * 4
    assert encoder.num_rows(4) == sum(map(encoder.num_tokens, parts))
    assert max(map(encoder.num_tokens, parts)) == videos().max_part_tokens


def test_media_that_do_not_fit_are_refused() -> None:
    encoder = picture_encoder()
    with pytest.raises(ValueError, match="run of 5 squares is asked for media of 6"):
        encoder.inputs([tiles("thin"), tiles("small")], 5)
    other = Tiles(np.zeros((2, 3, 38, 35), np.float32), (1, 1), (5, 5), (5, 5))
    with pytest.raises(ValueError, match=r"\[3, 38, 35\] were prepared, .*takes \[3, 38, 38\]"):
        encoder.inputs([other], 2)


@pytest.mark.parametrize("prefix", ["model.", ""])
@pytest.mark.parametrize("layout", ["newest", "vision_model"])
def test_names_of_newer_checkpoints(prefix: str, layout: str) -> None:
    """Without the prefix they are of the model without its head."""
    cmap = LlavaOnevision.checkpoint_map(load().config)
    stored = {cmap.canonical(name) for name in load_file(FOLDER / "model.safetensors")}
    names = [str(name).removeprefix("model.") for name in EXPECTED["names"]]
    if layout == "vision_model":
        names = [name.replace("vision_tower.", "vision_tower.vision_model.") for name in names]
    renamed = {n if n.startswith("lm_head.") else prefix + n for n in names}
    assert {cmap.canonical(name) for name in renamed} == stored


def test_canonical_names_stay() -> None:
    for piece in LlavaOnevision.checkpoint_map(load().config).pieces:
        assert canonical(piece.tensor) == piece.tensor


def test_known_extras() -> None:
    cmap = LlavaOnevision.checkpoint_map(load().config)
    for name in (
        "vision_tower.vision_model.post_layernorm.weight",
        "model.vision_tower.head.probe",
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq",
    ):
        assert cmap.is_ignored(cmap.canonical(name)), name
    for name in ("vision_tower.encoder.layers.1.mlp.fc3.bias", "image_newline"):
        assert not cmap.is_ignored(cmap.canonical(name)), name


def test_a_projector_without_biases() -> None:
    config = LlavaOnevisionConfig.from_hf(fields() | {"multimodal_projector_bias": False})
    _, shapes, _ = functional.abstract(LlavaOnevision, config, jnp.float32)
    pieces = LlavaOnevision.checkpoint_map(config).pieces
    assert {piece.param for piece in pieces} == shapes.keys()
    assert "projector.up.bias" not in shapes


def test_parameters_of_towers_can_be_told_by_their_names() -> None:
    """The rest are Qwen 2's, and each weight of the towers has an axis that can be split."""
    config = load().config
    _, shapes, axes = functional.abstract(LlavaOnevision, config, jnp.float32)
    mine = {name for name in shapes if name.split(".")[0] in LlavaOnevision.towers}
    assert shapes.keys() - mine == functional.abstract(Qwen2, config, jnp.float32)[1].keys()
    split = re.compile(r".*\.(qkv|qkv_bias|out\.weight|up\.weight|up\.bias|down\.weight)")
    assert {name for name in mine if split.fullmatch(name)}
    for name in filter(split.fullmatch, mine):
        assert {"vision_heads", "mlp"} & set(axes[name]), name


def test_the_file_that_newer_versions_save() -> None:
    assert LlavaOnevisionConfig.from_hf(read_json(FOLDER / "config_v5.json")) == load().config


def test_what_a_file_leaves_out() -> None:
    config = LlavaOnevisionConfig.from_hf({"text_config": {"vocab_size": 152000}})
    assert (config.image_token, config.video_token) == (151646, 151647)
    assert (config.hidden_size, config.num_kv_heads, config.max_model_len) == (4096, 32, 32768)
    assert config.qkv_bias
    assert (config.vision.along, config.vision.num_layers) == (27, 26)
    assert config.vision.hidden_size == 1152
    assert (config.max_squares, config.most_tiles, len(config.pinpoints)) == (9, 37, 36)
    assert config.pinpoints[:2] == ((384, 384), (384, 768))
    assert (config.projector_activation, config.projector_bias) == ("gelu", True)


def test_llava_onevision_qwen2_0_5b() -> None:
    """The fields that its config.json has."""
    hf = {
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "image_token_index": 151646,
        "model_type": "llava_onevision",
        "text_config": {
            "hidden_size": 896,
            "intermediate_size": 4864,
            "max_window_layers": 24,
            "model_type": "qwen2",
            "num_attention_heads": 14,
            "num_hidden_layers": 24,
            "num_key_value_heads": 2,
            "rope_theta": 1000000.0,
            "sliding_window": 32768,
            "tie_word_embeddings": True,
            "vocab_size": 152000,
        },
        "tie_word_embeddings": False,
        "video_token_index": 151647,
    }
    config = LlavaOnevisionConfig.from_hf(hf)
    assert (config.num_layers, config.num_kv_heads, config.head_dim) == (24, 2, 64)
    assert config.tie_embeddings
    assert config.windows == (None,) * 24
    assert config.vision == SiglipConfig.from_hf(
        {
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 26,
            "num_attention_heads": 16,
            "image_size": 384,
            "patch_size": 14,
        }
    )


def with_text(**changed: Any) -> dict[str, Any]:
    return fields() | {"text_config": fields()["text_config"] | changed}


@pytest.mark.parametrize(
    ("hf", "error", "match"),
    [
        (with_text(model_type="llama"), UnsupportedModelError, "'llama'; only 'qwen2'"),
        (
            fields() | {"vision_config": {"model_type": "clip_vision_model"}},
            UnsupportedModelError,
            "'clip_vision_model'; only 'siglip_vision_model'",
        ),
        (
            fields() | {"vision_feature_select_strategy": "default"},
            UnsupportedModelError,
            "'vision_feature_select_strategy'.*'default'; only 'full'",
        ),
        (
            fields() | {"use_image_newline_parameter": False},
            UnsupportedModelError,
            "'use_image_newline_parameter'.*False; only True",
        ),
        (
            fields() | {"vision_aspect_ratio": "anyres_max_0"},
            UnsupportedModelError,
            "'vision_aspect_ratio'.*'anyres_max_0'; only 'anyres_max_N'",
        ),
        (
            fields() | {"image_grid_pinpoints": [[38, 40]]},
            ModelConfigError,
            r"'image_grid_pinpoints'.*\[\[38, 40\]\]; .* multiples of 38",
        ),
        (
            fields() | {"image_grid_pinpoints": []},
            ModelConfigError,
            r"'image_grid_pinpoints'.*\[\]; it must be a list",
        ),
        (
            fields() | {"vision_feature_layer": 4},
            ModelConfigError,
            "'vision_feature_layer'.* is 4; it must be an integer from -4 to 3",
        ),
        (
            fields() | {"video_token_index": 104},
            ModelConfigError,
            "'video_token_index'.* is 104; it must be below 104",
        ),
        (
            fields() | {"projector_hidden_act": "geglu"},
            UnsupportedModelError,
            "activation function 'geglu' is not supported",
        ),
    ],
)
def test_what_is_refused(hf: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        LlavaOnevisionConfig.from_hf(hf)
