"""LLaVA-NeXT-Video, and LLaVA-NeXT made of Mistral, against what `transformers` computes."""

import dataclasses
import functools
import re
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file
from tests.models.conftest import (
    PagedFeatures,
    encode,
    features_of,
    fill_params,
    forward,
    read_json,
)
from tests.models.square_models import SquareModel

from quire.errors import ModelConfigError, UnsupportedModelError
from quire.models import functional
from quire.models.llama import Llama, LlamaConfig
from quire.models.llava import canonical
from quire.models.llava_next import LlavaNext, LlavaNextConfig
from quire.models.llava_next_video import LlavaNextVideo, LlavaNextVideoConfig, Resampler
from quire.models.mistral import MistralConfig
from quire.multimodal.llava_next_video import Frames
from quire.multimodal.tiles import Tiles

VIDEO, NEXT = SquareModel("llava_next_video"), SquareModel("llava_next")
BOTH = pytest.mark.parametrize("case", [VIDEO, NEXT], ids=lambda case: case.name)
EXPECTED = VIDEO.expected
VIDEOS = ("clip", "film", "exact")
PROMPTS = ("text", "one", "several", "video", "videos", "mixed")
NEXT_PROMPTS = ("text", "one", "several")
CASES = [*((VIDEO, prompt) for prompt in PROMPTS), *((NEXT, prompt) for prompt in NEXT_PROMPTS)]
TOLERANCE = 1e-4
VIDEO_TOLERANCE = 0.01
"""Of a feature's size: the reference scales frames by a library that rounds some otherwise."""
CHUNK = 24
"""Tokens of a row in one step: less than most pictures have."""
SIZES = {"wide": 4, "tall": 4, "small": 3, "thin": 4, "large": 5, "line": 4}
"""Tiles."""


def medium(case: SquareModel, name: str) -> Any:
    """As it is prepared; of a video the reference's own pixels."""
    is_video = case.kind(name) == "video"
    return Frames(case.expected[f"{name}/pixels"]) if is_video else case.prepared(name)


@functools.cache
def shown(case: SquareModel, prompt: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A prompt as `PagedFeatures` takes it, its media of a kind encoded in one run."""
    rows: dict[str, np.ndarray] = {}
    for kind, encoder in case.encoders.items():
        names = [name for name in case.names(prompt) if case.kind(name) == kind]
        media = [medium(case, name) for name in names]
        encoded = case.encoded(kind, media, sum(map(encoder.units, media)) + 1)
        ends = np.cumsum(list(map(encoder.num_tokens, media)))
        rows |= dict(zip(names, np.split(encoded, ends), strict=False))
    return case.shown(prompt, [rows[name] for name in case.names(prompt)])


@BOTH
def test_pictures_are_prepared_as_by_transformers(case: SquareModel) -> None:
    prepared, expected = case.prepared("tall"), case.expected["tall/pixels"]
    np.testing.assert_allclose(prepared.pixels, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", VIDEOS)
def test_videos_are_prepared_as_by_transformers(name: str) -> None:
    """But for the rounding of two libraries that scale."""
    error = np.abs(VIDEO.prepared(name).pixels - EXPECTED[f"{name}/pixels"])
    level = 1 / 255 / 0.26130258
    assert error.max() < (1e-5 if name == "exact" else 1.01 * level)
    assert (error > 0.5 * level).mean() < 0.02


@pytest.mark.parametrize("name", SIZES)
def test_features_of_pictures(name: str) -> None:
    tiles, expected = VIDEO.prepared(name), EXPECTED[f"{name}/features"]
    assert len(tiles.pixels) == SIZES[name]
    assert VIDEO.encoders["image"].num_tokens(tiles) == len(expected)
    rows = VIDEO.encoded("image", [tiles], SIZES[name])
    assert np.abs(rows[: len(expected)] - expected).max() < TOLERANCE


def test_the_fixture_cuts_padding_off_both_ways_and_all_of_a_line() -> None:
    assert VIDEO.prepared("line").shown == (0, 12)
    assert (VIDEO.prepared("thin").grid, VIDEO.prepared("thin").kept) == ((1, 3), (2, 12))
    assert (VIDEO.prepared("wide").grid, VIDEO.prepared("wide").kept) == ((1, 3), (4, 8))


@pytest.mark.parametrize("name", VIDEOS)
def test_features_of_videos(name: str) -> None:
    expected = EXPECTED[f"{name}/features"]
    rows = VIDEO.encoded("video", [medium(VIDEO, name)], 6)
    assert np.abs(rows[: len(expected)] - expected).max() < TOLERANCE


@pytest.mark.parametrize("name", VIDEOS)
def test_features_of_videos_as_they_are_prepared(name: str) -> None:
    expected = EXPECTED[f"{name}/features"]
    rows = VIDEO.encoded("video", [VIDEO.prepared(name)], 6)[: len(expected)]
    assert np.abs(rows - expected).mean() < VIDEO_TOLERANCE * np.abs(expected).mean()


@pytest.mark.parametrize("mode", ["max", "conv"])
def test_features_of_a_video_that_is_pooled_otherwise(mode: str) -> None:
    config = LlavaNextVideoConfig.from_hf(VIDEO.fields() | {"spatial_pool_mode": mode})
    graphdef, shapes, _ = functional.abstract(LlavaNextVideo, config, jnp.float32)
    tensors = load_file(VIDEO.folder / "model.safetensors")
    if mode == "conv":
        name = "vision_resampler.pool"
        tensors |= {f"{name}.{kind}": EXPECTED[f"conv/{kind}"] for kind in ("weight", "bias")}
    params = fill_params(shapes, tensors, LlavaNextVideo.checkpoint_map(config))
    inputs = LlavaNextVideo.encoders(config)["video"].inputs([VIDEO.prepared("exact")], 2)
    rows = encode(graphdef, {name: jnp.asarray(a) for name, a in params.items()}, inputs)
    assert np.abs(rows - EXPECTED[f"exact/{mode}"]).max() < TOLERANCE
    assert np.abs(rows - EXPECTED["exact/features"]).max() > 0.1


@pytest.mark.parametrize(("along", "stride"), [(5, 2), (7, 3), (4, 4), (3, 1)])
@pytest.mark.parametrize("mode", ["average", "max"])
def test_pools_leave_out_what_is_no_whole_square(along: int, stride: int, mode: str) -> None:
    config = VIDEO.model.config
    vision = dataclasses.replace(config.vision, image_size=along * config.vision.patch_size)
    config = dataclasses.replace(config, vision=vision, pool=mode, stride=stride)
    x = np.random.default_rng(0).normal(0, 1, (2, along**2, 3)).astype(np.float32)
    out = Resampler(config, dtype=jnp.float32, rngs=nnx.Rngs(0))(jnp.asarray(x))
    grid, count = x.reshape(2, along, along, 3), along // stride
    assert (count, out.shape) == (config.frame_along, (2, count**2, 3))
    for row in range(count):
        for column in range(count):
            place = (slice(row * stride, (row + 1) * stride) for row in (row, column))
            part = grid[:, *place]
            expected = part.mean((1, 2)) if mode == "average" else part.max((1, 2))
            own = out[:, row * count + column]
            np.testing.assert_allclose(own, expected, rtol=0, atol=1e-6)


def test_frames_that_are_encoded_apart_are_as_together() -> None:
    encoder, film = VIDEO.encoders["video"], VIDEO.prepared("film")
    parts = encoder.parts(film)
    assert [encoder.num_tokens(part) for part in parts] == [4] * 5
    assert [encoder.units(part) for part in parts] == [1] * 5
    whole = VIDEO.encoded("video", [film], 5)
    first, last = VIDEO.encoded("video", parts[:3], 4)[:12], VIDEO.encoded("video", parts[3:], 4)
    np.testing.assert_allclose(np.concatenate([first, last[:8]]), whole, rtol=0, atol=1e-5)


def test_pictures_of_one_run_are_as_alone_and_padding_changes_none() -> None:
    media = [VIDEO.prepared(name) for name in ("small", "line", "large", "thin")]
    rows = VIDEO.encoded("image", media, 18)
    assert np.isfinite(rows).all()
    ends = np.cumsum(list(map(VIDEO.encoders["image"].num_tokens, media)))
    for one, own in zip(media, np.split(rows, ends), strict=False):
        alone = VIDEO.encoded("image", [one], len(one.pixels))
        np.testing.assert_allclose(own, alone[: len(own)], rtol=0, atol=1e-5)
    assert not rows[ends[-1] :].any()


def test_a_run_of_padding_alone_is_finite() -> None:
    assert np.isfinite(VIDEO.encoded("image", [], 2)).all()
    assert np.isfinite(VIDEO.encoded("video", [], 2)).all()


@pytest.mark.parametrize(("case", "prompt"), CASES, ids=lambda one: getattr(one, "name", one))
def test_whole_prompts(case: SquareModel, prompt: str) -> None:
    tokens, rows, index = shown(case, prompt)
    model, args = case.model, (jnp.asarray(tokens), features_of(rows, index))
    logits, _ = forward(model.graphdef, model.params, None, None, *args)
    assert np.abs(logits - case.expected[f"{prompt}/logits"]).max() < TOLERANCE


@pytest.mark.parametrize(
    ("case", "prompts"),
    [(VIDEO, PROMPTS[:3]), (VIDEO, PROMPTS[3:]), (NEXT, NEXT_PROMPTS)],
    ids=["pictures", "videos", "llava_next"],
)
def test_paged_cache_in_chunks_that_split_media(
    case: SquareModel, prompts: tuple[str, ...]
) -> None:
    """Prompts side by side over a pool full of NaN, then decode to the reference tokens."""
    paged = PagedFeatures(case.model, [shown(case, prompt) for prompt in prompts], CHUNK)
    logits = paged.fill()
    for prompt, own in zip(prompts, logits, strict=True):
        assert np.abs(own - case.expected[f"{prompt}/logits"]).max() < TOLERANCE

    output = [[own[-1].argmax()] for own in logits]
    greedy = [case.expected[f"{prompt}/greedy"].tolist() for prompt in prompts]
    while len(output[0]) < len(greedy[0]):
        steps = paged.step([np.asarray(tokens[-1:]) for tokens in output])
        for tokens, own in zip(output, steps, strict=True):
            tokens.append(own[-1].argmax())
    assert output == greedy


def test_mistral_sees_no_further_than_its_window() -> None:
    assert NEXT.model.config.windows == (20, 20)
    assert max(len(NEXT.expected[f"{prompt}/prompt"]) for prompt in NEXT_PROMPTS) > 60


@BOTH
def test_text_alone_runs_as_llama(case: SquareModel) -> None:
    tokens = jnp.asarray(case.expected["text/prompt"])
    model = case.model
    expected, _ = forward(model.graphdef, model.params, None, None, tokens, None)
    params = {n: a for n, a in model.params.items() if n.split(".")[0] not in case.cls.towers}
    graphdef, shapes, _ = functional.abstract(Llama, model.config, jnp.float32)
    assert shapes.keys() == params.keys()
    logits, _ = forward(graphdef, params, None, None, tokens, None)
    np.testing.assert_array_equal(logits, expected)


@pytest.mark.parametrize("name", ["thin", "clip"])
def test_inputs_have_the_shapes_that_size_gives(name: str) -> None:
    kind = VIDEO.kind(name)
    encoder, one = VIDEO.encoders[kind], VIDEO.prepared(name)
    inputs, shapes = encoder.inputs([one], 6), encoder.abstract(6)
    assert {n: (a.shape, a.dtype) for n, a in inputs.items()} == {
        n: (s.shape, s.dtype) for n, s in shapes.items()
    }
    used = encoder.units(one)
    np.testing.assert_array_equal(inputs["pixels"][:used], one.pixels)
    assert not inputs["pixels"][used:].any()
    assert encoder.num_rows(6) == VIDEO.encoded(kind, [], 6).shape[0]
    assert encoder.num_patches(6) == 6 * 16


def test_any_picture_fits_into_the_largest_run() -> None:
    encoder, processor = VIDEO.encoders["image"], VIDEO.processor("image")
    assert encoder.size_for(1) == 5 == VIDEO.model.config.most_tiles
    assert processor.max_tokens <= encoder.num_rows(encoder.size_for(processor.max_tokens))


def test_as_many_frames_fit_as_have_so_many_tokens() -> None:
    encoder, processor = VIDEO.encoders["video"], VIDEO.processor("video")
    assert [encoder.size_for(tokens) for tokens in (1, 16, 20, 23)] == [4, 4, 5, 5]
    assert encoder.num_rows(5) == encoder.num_tokens(VIDEO.prepared("film")) == 20
    [part, *_] = encoder.parts(VIDEO.prepared("film"))
    assert encoder.num_tokens(part) == processor.max_part_tokens


def test_media_that_do_not_fit_are_refused() -> None:
    encoder = VIDEO.encoders["video"]
    with pytest.raises(ValueError, match="run of 4 squares is asked for media of 5"):
        encoder.inputs([VIDEO.prepared("film")], 4)
    with pytest.raises(ValueError, match=r"\[3, 32, 36\] were prepared, .*takes \[3, 32, 32\]"):
        encoder.inputs([Frames(np.zeros((1, 3, 32, 36), np.float32))], 4)


def test_a_small_model_of_one_pinpoint_learns_through_encode() -> None:
    """As programs that train it call it; every weight that both kinds pass has a gradient."""
    hf = VIDEO.fields() | {"image_grid_pinpoints": [[32, 32]]}
    config = LlavaNextVideoConfig.from_hf(hf)
    assert config.most_tiles == 2
    model = LlavaNextVideo(config, dtype=jnp.float32, rngs=nnx.Rngs(0))
    encoders = LlavaNextVideo.encoders(config)
    squares = np.ones((2, 3, 32, 32), np.float32)
    tiles = Tiles(squares, (1, 1), (4, 4), (4, 4))

    @nnx.jit
    def gradients(model: LlavaNextVideo, inputs: Any) -> Any:
        return nnx.grad(lambda model: (model.encode(inputs) ** 2).sum())(model)

    for kind, one in {"image": tiles, "video": Frames(squares)}.items():
        made = gradients(model, encoders[kind].inputs([one], 4))
        assert jnp.abs(made["projector"]["down"]["weight"][...]).max() > 0
        assert jnp.isfinite(made["vision"]["positions"][...]).all()
        assert (jnp.abs(made["newline"][...]).max() > 0) == (kind == "image")


@BOTH
@pytest.mark.parametrize("prefix", ["model.", ""])
@pytest.mark.parametrize("layout", ["newest", "vision_model"])
def test_names_of_newer_checkpoints(case: SquareModel, prefix: str, layout: str) -> None:
    """Without the prefix they are of the model without its head."""
    cmap = case.cls.checkpoint_map(case.model.config)
    stored = {cmap.canonical(name) for name in load_file(case.folder / "model.safetensors")}
    names = [str(name).removeprefix("model.") for name in case.expected["names"]]
    if layout == "vision_model":
        names = [name.replace("vision_tower.", "vision_tower.vision_model.") for name in names]
    renamed = {n if n.startswith("lm_head.") else prefix + n for n in names}
    assert {cmap.canonical(name) for name in renamed} == stored


@BOTH
def test_canonical_names_stay(case: SquareModel) -> None:
    for piece in case.cls.checkpoint_map(case.model.config).pieces:
        assert canonical(piece.tensor) == piece.tensor


def test_names_of_the_convolution() -> None:
    for name in ("model.vision_resampler.pool.bias", "vision_resampler.pool.bias"):
        assert canonical(name) == "vision_resampler.pool.bias"
    config = LlavaNextVideoConfig.from_hf(VIDEO.fields() | {"spatial_pool_mode": "conv"})
    _, shapes, _ = functional.abstract(LlavaNextVideo, config, jnp.float32)
    assert {p.param for p in LlavaNextVideo.checkpoint_map(config).pieces} == shapes.keys()
    assert shapes["resampler.pool.weight"].shape == (24, 24 * 4)


def test_known_extras() -> None:
    cmap = LlavaNextVideo.checkpoint_map(VIDEO.model.config)
    for name in (
        "vision_tower.vision_model.post_layernorm.weight",
        "vision_tower.vision_model.embeddings.position_ids",
        "model.vision_tower.encoder.layers.2.mlp.fc1.bias",
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq",
    ):
        assert cmap.is_ignored(cmap.canonical(name)), name
    for name in ("vision_tower.encoder.layers.1.mlp.fc3.bias", "image_newline"):
        assert not cmap.is_ignored(cmap.canonical(name)), name


@BOTH
def test_parameters_of_towers_can_be_told_by_their_names(case: SquareModel) -> None:
    """The rest are Llama's, and each weight of the towers has an axis that can be split."""
    config = case.model.config
    _, shapes, axes = functional.abstract(case.cls, config, jnp.float32)
    mine = {name for name in shapes if name.split(".")[0] in case.cls.towers}
    assert shapes.keys() - mine == functional.abstract(Llama, config, jnp.float32)[1].keys()
    split = re.compile(r".*\.(qkv|qkv_bias|out\.weight|up\.weight|up\.bias|down\.weight)")
    assert {name for name in mine if split.fullmatch(name)}
    for name in filter(split.fullmatch, mine):
        assert {"vision_heads", "mlp"} & set(axes[name]), name


def test_only_llava_1_5_takes_states_of_the_tower() -> None:
    assert not hasattr(LlavaNext, "state_encoder")
    assert not hasattr(LlavaNextVideo, "state_encoder")


@BOTH
def test_the_file_that_newer_versions_save(case: SquareModel) -> None:
    newer = read_json(case.folder / "config_v5.json")
    assert case.cls.config_class.from_hf(newer) == case.model.config


def test_what_a_file_leaves_out() -> None:
    config = LlavaNextVideoConfig.from_hf({"text_config": {"vocab_size": 32064}})
    assert (config.image_token, config.video_token) == (32001, 32000)
    assert (config.hidden_size, config.num_kv_heads, config.max_model_len) == (4096, 32, 2048)
    assert (config.vision.along, config.vision.num_layers) == (24, 23)
    assert (config.pool, config.stride, config.frame_along) == ("average", 2, 12)
    assert config.pinpoints == ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
    assert config.most_tiles == 5
    assert LlavaNextConfig.from_hf({"text_config": {"vocab_size": 32064}}).image_token == 32000


def test_llava_v1_6_mistral_7b() -> None:
    """The fields that its config.json has; null is no window."""
    text = {
        "architectures": ["MistralForCausalLM"],
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "model_type": "mistral",
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "vocab_size": 32064,
    }
    config = LlavaNextConfig.from_hf({"text_config": text})
    fields = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
    expected = MistralConfig.from_hf(text | fields)
    assert {name: getattr(config, name) for name in vars(expected)} == vars(expected)
    assert config.windows == (None,) * 32
    short = LlavaNextConfig.from_hf({"text_config": {"model_type": "mistral", "vocab_size": 32064}})
    assert (short.windows[0], short.num_kv_heads, short.intermediate_size) == (4096, 8, 14336)
    assert isinstance(short, LlamaConfig)


def with_text(**changed: Any) -> dict[str, Any]:
    return VIDEO.fields() | {"text_config": VIDEO.fields()["text_config"] | changed}


@pytest.mark.parametrize(
    ("hf", "error", "match"),
    [
        (with_text(model_type="qwen2"), UnsupportedModelError, "'qwen2'; only 'llama' or 'mist"),
        (
            VIDEO.fields() | {"vision_config": {"model_type": "siglip_vision_model"}},
            UnsupportedModelError,
            "'siglip_vision_model'; only 'clip_vision_model'",
        ),
        (
            VIDEO.fields() | {"vision_feature_select_strategy": "full"},
            UnsupportedModelError,
            "'vision_feature_select_strategy'.*'full'; only 'default'",
        ),
        (
            VIDEO.fields() | {"image_grid_pinpoints": [[32, 40]]},
            ModelConfigError,
            r"'image_grid_pinpoints'.*\[\[32, 40\]\]; .* multiples of 32",
        ),
        (
            VIDEO.fields() | {"spatial_pool_mode": "median"},
            ModelConfigError,
            "'spatial_pool_mode'.*'median'; allowed are 'average', 'max', 'conv'",
        ),
        (
            VIDEO.fields() | {"spatial_pool_stride": 5},
            ModelConfigError,
            "'spatial_pool_stride'.* is 5; it may be at most 4",
        ),
        (
            VIDEO.fields() | {"spatial_pool_mode": "conv", "spatial_pool_out_channels": 8},
            UnsupportedModelError,
            "'conv' with 8 channels of 24",
        ),
        (
            VIDEO.fields() | {"spatial_pool_mode": "conv", "vision_feature_layer": [-2, -1]},
            UnsupportedModelError,
            "'conv' with 24 channels of 48",
        ),
        (
            VIDEO.fields() | {"video_token_index": 104},
            ModelConfigError,
            "'video_token_index'.* is 104; it must be below 104",
        ),
    ],
)
def test_what_is_refused(hf: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        LlavaNextVideoConfig.from_hf(hf)
