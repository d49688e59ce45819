"""Qwen2-Audio with and without sounds against what `transformers` computes.

`tests/fixtures/audio/qwen2_audio` is made by `scripts/make_qwen2_audio_fixtures.py`.
"""

import functools
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file
from tests.models.conftest import (
    PagedFeatures,
    ReferenceModel,
    encode,
    features_of,
    forward,
    load_checkpoint,
    read_json,
)

from quire.errors import ModelConfigError, UnsupportedModelError
from quire.models import functional
from quire.models.qwen2 import Qwen2
from quire.models.qwen2_audio import Qwen2Audio, Qwen2AudioConfig, canonical
from quire.models.whisper import WhisperLayer, means, windows
from quire.multimodal.log_mel import LogMel, Spectrogram

FOLDER = Path(__file__).resolve().parent.parent / "fixtures" / "audio" / "qwen2_audio"
EXPECTED = np.load(FOLDER / "expected.npz")
FEATURES = {"long": 25, "short": 8, "odd": 15, "tiny": 1}
PROMPTS = ("text", "one", "two", "three")
TOLERANCE = 1e-4
CHUNK = 16
"""Tokens of a row in one step: less than the longest clip has."""


def fields() -> dict[str, Any]:
    """The config.json, as a fresh dict."""
    return read_json(FOLDER / "config.json")


@functools.cache
def load() -> ReferenceModel:
    config = Qwen2AudioConfig.from_hf(fields())
    return ReferenceModel(config, *load_checkpoint(Qwen2Audio, config, FOLDER), ())


@functools.cache
def clip(name: str) -> Spectrogram:
    """A sound as it is prepared."""
    process = LogMel.from_hf(read_json(FOLDER / "preprocessor_config.json"))
    return process(EXPECTED[f"{name}/samples"].astype(np.float32) / 32768)


def encoded(names: tuple[str, ...], size: int) -> np.ndarray:
    """Rows of one run of the tower."""
    encoder = Qwen2Audio.encoders(load().config)["audio"]
    inputs = encoder.inputs([clip(name) for name in names], size)
    return np.asarray(encode(load().graphdef, load().params, inputs))


def heard(prompt: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens of a prompt, rows of its clips from one run, and the row of each token."""
    tokens = EXPECTED[f"{prompt}/prompt"]
    names = tuple(map(str, EXPECTED[f"{prompt}/clips"]))
    rows = encoded(names, 4)
    here = tokens == load().config.audio_token
    assert here.sum() == sum(FEATURES[name] for name in names)
    return tokens, rows, np.where(here, np.cumsum(here) - 1, len(rows))


def over_pages(prompts: tuple[str, ...]) -> PagedFeatures:
    """Prompts over a pool full of NaN."""
    return PagedFeatures(load(), map(heard, prompts), CHUNK)


@pytest.mark.parametrize("name", FEATURES)
def test_features(name: str) -> None:
    rows = encoded((name,), 1)
    encoder = Qwen2Audio.encoders(load().config)["audio"]
    assert encoder.num_tokens(clip(name)) == FEATURES[name] == len(EXPECTED[f"{name}/features"])
    assert rows.shape == (encoder.num_rows(1), 32) == (25, 32)
    assert np.abs(rows[: FEATURES[name]] - EXPECTED[f"{name}/features"]).max() < TOLERANCE


def test_clips_of_one_run_follow_one_another_and_are_as_alone() -> None:
    names = tuple(FEATURES)
    rows = encoded(names, 6)
    assert np.isfinite(rows).all()
    ends = np.cumsum(list(FEATURES.values()))
    for own, name in zip(np.split(rows, ends), names, strict=False):
        alone = encoded((name,), 1)[: FEATURES[name]]
        np.testing.assert_allclose(own, alone, rtol=0, atol=1e-5)


def test_a_run_of_padding_alone_is_finite() -> None:
    assert np.isfinite(encoded((), 2)).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_features_in_types_of_16_bits(dtype: Any) -> None:
    _, shapes, _ = functional.abstract(Qwen2Audio, load().config, dtype)
    graphdef, params = load_checkpoint(Qwen2Audio, load().config, FOLDER, dtype)
    assert {name: array.dtype for name, array in params.items()} == {
        name: shape.dtype for name, shape in shapes.items()
    }
    inputs = Qwen2Audio.encoders(load().config)["audio"].inputs([clip("odd")], 1)
    rows = encode(graphdef, params, inputs)
    assert rows.dtype == dtype
    error = np.asarray(rows, np.float32)[: FEATURES["odd"]] - EXPECTED["odd/features"]
    assert np.sqrt(np.mean(error**2)) < 0.05 * EXPECTED["odd/features"].std()


def test_large_states_stay_finite_in_float16() -> None:
    layer = WhisperLayer(load().config.audio, dtype=jnp.float16, rngs=nnx.Rngs(0))
    assert layer.down.bias is not None
    layer.down.bias[...] = jnp.full(32, 40000, jnp.float16)
    x = jnp.full((1, 3, 32), 40000, jnp.float16)
    out = layer(x, jnp.array([3]))
    assert np.isfinite(out).all()
    assert (out > 60000).all()


@pytest.mark.parametrize("stride", [1, 2])
def test_windows_make_a_convolution(stride: int) -> None:
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(2, 9, 4)), jnp.float32)
    w = jnp.asarray(random.normal(size=(5, 4, 3)), jnp.float32)
    places = jax.lax.conv_general_dilated(
        x.swapaxes(1, 2), w, (stride,), [(1, 1)], precision="highest"
    )
    rows = np.asarray(windows(x, stride)) @ np.asarray(w).reshape(5, 12).T
    np.testing.assert_allclose(rows, places.swapaxes(1, 2), rtol=0, atol=1e-5)


def test_means_leave_out_what_does_not_fill_one() -> None:
    x = jnp.asarray([[[1.0], [3.0], [5.0], [9.0], [100.0]]])
    np.testing.assert_array_equal(means(x, 2), [[[2.0], [7.0]]])


@pytest.mark.parametrize("prompt", PROMPTS)
def test_whole_prompts(prompt: str) -> None:
    tokens, rows, index = heard(prompt)
    model, args = load(), (jnp.asarray(tokens), features_of(rows, index))
    logits, _ = forward(model.graphdef, model.params, None, None, *args)
    assert np.abs(logits - EXPECTED[f"{prompt}/logits"]).max() < TOLERANCE


def test_paged_cache_in_chunks_that_split_clips() -> None:
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
    assert len(greedy[0]) == 64
    assert output == greedy


def test_inputs_have_the_shapes_that_size_gives() -> None:
    encoder = Qwen2Audio.encoders(load().config)["audio"]
    inputs = encoder.inputs([clip("short")], 3)
    shapes = encoder.abstract(3)
    assert {n: (a.shape, a.dtype) for n, a in inputs.items()} == {
        n: (s.shape, s.dtype) for n, s in shapes.items()
    }
    np.testing.assert_array_equal(inputs["mels"][0], clip("short").mels)
    assert not inputs["mels"][1:].any()
    assert inputs["frames"].tolist() == [32, 0, 0]
    assert (encoder.units(clip("short")), encoder.num_patches(3)) == (1, 150)
    assert encoder.num_rows(3) == encoded((), 3).shape[0] == 75
    assert [encoder.size_for(tokens) for tokens in (1, 25, 26, 75)] == [1, 1, 2, 3]


def test_clips_must_be_as_long_as_the_tower_needs() -> None:
    encoder = Qwen2Audio.encoders(load().config)["audio"]
    match = r"shape \[16, 3000\].*takes \[16, 100\]: feature_size and chunk_length in preproc"
    with pytest.raises(ModelConfigError, match=match):
        encoder.inputs([Spectrogram(np.zeros((16, 3000), np.float32), 40)], 1)


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_names_of_newer_checkpoints(prefix: str) -> None:
    """Without the prefix they are of the model without its head."""
    cmap = Qwen2Audio.checkpoint_map(load().config)
    stored = {cmap.canonical(name) for name in load_file(FOLDER / "model.safetensors")}
    names = [str(name).removeprefix("model.") for name in EXPECTED["names"]]
    renamed = {n if n.startswith("lm_head.") else prefix + n for n in names}
    assert len(renamed) == len(names)
    assert {cmap.canonical(name) for name in renamed} == stored


def test_canonical_names_stay() -> None:
    for piece in Qwen2Audio.checkpoint_map(load().config).pieces:
        assert canonical(piece.tensor) == piece.tensor


def test_known_extras() -> None:
    cmap = Qwen2Audio.checkpoint_map(load().config)
    name = "language_model.model.layers.0.self_attn.rotary_emb.inv_freq"
    assert cmap.is_ignored(cmap.canonical(name))
    assert not cmap.is_ignored(cmap.canonical("audio_tower.layers.0.self_attn.k_proj.bias"))


def test_the_file_that_newer_versions_save() -> None:
    assert Qwen2AudioConfig.from_hf(read_json(FOLDER / "config_v5.json")) == load().config
    renamed = fields()
    renamed["audio_token_id"] = renamed.pop("audio_token_index")
    assert Qwen2AudioConfig.from_hf(renamed) == load().config


def test_qwen2_audio_7b() -> None:
    """The fields that its config.json has."""
    text = {
        "intermediate_size": 11008,
        "max_position_embeddings": 8192,
        "model_type": "qwen2",
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000,
        "sliding_window": 32768,
        "vocab_size": 156032,
    }
    hf = {
        "architectures": ["Qwen2AudioForConditionalGeneration"],
        "audio_token_index": 151646,
        "audio_config": {"model_type": "qwen2_audio_encoder"},
        "text_config": text,
    }
    config = Qwen2AudioConfig.from_hf(hf)
    assert (config.hidden_size, config.intermediate_size, config.num_layers) == (4096, 11008, 32)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (32, 32, 128)
    assert (config.max_model_len, config.vocab_size, config.audio_token) == (8192, 156032, 151646)
    assert (config.norm_eps, config.tie_embeddings, set(config.windows)) == (1e-5, False, {None})
    audio = config.audio
    assert (audio.hidden_size, audio.num_heads, audio.num_layers) == (1280, 20, 32)
    assert (audio.num_mel_bins, audio.num_frames, audio.num_rows) == (128, 3000, 750)
    assert Qwen2Audio.encoders(config)["audio"].abstract(2)["mels"].shape == (2, 128, 3000)
    assert Qwen2AudioConfig.from_hf(hf | {"audio_config": None}) == config


def with_audio(**changed: Any) -> dict[str, Any]:
    return fields() | {"audio_config": fields()["audio_config"] | changed}


@pytest.mark.parametrize(
    ("hf", "error", "match"),
    [
        (
            fields() | {"text_config": {"model_type": "llama"}},
            UnsupportedModelError,
            "text_config.*'llama'; only 'qwen2'",
        ),
        (
            with_audio(model_type="wav2vec2"),
            UnsupportedModelError,
            "audio_config.*'wav2vec2'; only 'qwen2_audio_encoder'",
        ),
        (
            fields() | {"audio_config": 3},
            ModelConfigError,
            "'audio_config'.* is 3; it must be an object",
        ),
        (with_audio(encoder_layers=0), ModelConfigError, "'encoder_layers'.* is 0; .*at least 1"),
        (with_audio(max_source_positions=1), ModelConfigError, "positions'.* is 1; .*at least 2"),
        (
            with_audio(encoder_attention_heads=5),
            ModelConfigError,
            "'d_model' is 32, which 'encoder_attention_heads' = 5 does not divide",
        ),
        (
            with_audio(activation_function="geglu"),
            UnsupportedModelError,
            "activation function 'geglu' is not supported",
        ),
        (
            fields() | {"audio_token_index": 128},
            ModelConfigError,
            "'audio_token_index'.* is 128; it must be below 128",
        ),
    ],
)
def test_what_is_refused(hf: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        Qwen2AudioConfig.from_hf(hf)


def test_parameters_of_towers_can_be_told_by_their_names() -> None:
    """The rest are Qwen 2's, and each weight of the towers has an axis that can be split."""
    config = load().config
    _, shapes, axes = functional.abstract(Qwen2Audio, config, jnp.float32)
    towers = tuple(f"{name}." for name in Qwen2Audio.towers)
    mine = {name for name in shapes if name.startswith(towers)}
    assert shapes.keys() - mine == functional.abstract(Qwen2, config, jnp.float32)[1].keys()
    split = re.compile(r".*\.(qkv|[qv]_bias|out\.weight|up\.weight|up\.bias|down\.weight)")
    for name in filter(split.fullmatch, mine):
        assert {"vision_heads", "mlp"} & set(axes[name]), name
