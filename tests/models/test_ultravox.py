"""Ultravox with and without sounds against a reference made of Whisper and Llama.

`tests/fixtures/audio/ultravox` is made by `scripts/make_ultravox_fixtures.py`.
"""

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.models.conftest import (
    PagedFeatures,
    ReferenceModel,
    encode,
    features_of,
    fill_params,
    forward,
    load_checkpoint,
    read_json,
)

from quire.errors import ModelConfigError, UnsupportedModelError
from quire.models import functional
from quire.models.llama import Llama
from quire.models.ultravox import Ultravox, UltravoxConfig, UltravoxEncoder, canonical, stacked
from quire.multimodal.log_mel import LogMel, Spectrogram

FOLDER = Path(__file__).resolve().parent.parent / "fixtures" / "audio" / "ultravox"
EXPECTED = np.load(FOLDER / "expected.npz")
FEATURES = {"long": 29, "full": 13, "short": 4, "odd": 8, "tiny": 1}
FRAMES = {"long": 217, "full": 100, "short": 32, "odd": 61, "tiny": 2}
PROMPTS = ("text", "one", "two", "three")
TOLERANCE = 1e-4
CHUNK = 16
"""Tokens of a row in one step: less than the longest clip has."""


def fields() -> dict[str, Any]:
    """The config.json, as a fresh dict."""
    return read_json(FOLDER / "config.json")


@functools.cache
def load() -> ReferenceModel:
    config = UltravoxConfig.from_hf(fields())
    return ReferenceModel(config, *load_checkpoint(Ultravox, config, FOLDER), ())


def encoder() -> UltravoxEncoder:
    return Ultravox.encoders(load().config)["audio"]


@functools.cache
def clip(name: str) -> Spectrogram:
    """A sound as it is prepared: as long as it is, in whole frames and two at least."""
    process = LogMel.from_hf(read_json(FOLDER / "preprocessor_config.json"))
    samples = EXPECTED[f"{name}/samples"].astype(np.float32) / 32768
    samples = np.pad(samples, (0, max(0, 2 * process.hop - len(samples))))
    length = -(-len(samples) // process.hop) * process.hop
    return dataclasses.replace(process, max_length=length)(samples)


def encoded(names: tuple[str, ...], size: int) -> np.ndarray:
    """Rows of one run of the tower."""
    inputs = encoder().inputs([clip(name) for name in names], size)
    return np.asarray(encode(load().graphdef, load().params, inputs))


def heard(prompt: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens of a prompt, rows of its clips from one run, and the row of each token."""
    tokens = EXPECTED[f"{prompt}/prompt"]
    names = tuple(map(str, EXPECTED[f"{prompt}/clips"]))
    rows = encoded(names, 6)
    here = tokens == load().config.audio_token
    assert here.sum() == sum(FEATURES[name] for name in names)
    return tokens, rows, np.where(here, np.cumsum(here) - 1, len(rows))


@pytest.mark.parametrize("name", FEATURES)
def test_features(name: str) -> None:
    np.testing.assert_allclose(clip(name).mels, EXPECTED[f"{name}/mels"], rtol=0, atol=1e-5)
    rows = encoded((name,), 3)
    assert encoder().num_tokens(clip(name)) == FEATURES[name] == len(EXPECTED[f"{name}/features"])
    assert load().config.rows(FRAMES[name]) == FEATURES[name]
    assert rows.shape == (encoder().num_rows(3), 32) == (39, 32)
    assert np.abs(rows[: FEATURES[name]] - EXPECTED[f"{name}/features"]).max() < TOLERANCE


@pytest.mark.parametrize("name", ["long", "odd"])
def test_features_of_old_models(name: str) -> None:
    """Their projector ends with a norm, which newer ones have before its last product."""
    config = UltravoxConfig.from_hf(fields() | {"projector_ln_mid": None})
    graphdef, shapes, _ = functional.abstract(Ultravox, config, jnp.float32)
    tensors = load_file(FOLDER / "model.safetensors")
    del tensors["multi_modal_projector.ln_mid.weight"]
    tensors["multi_modal_projector.ln_post.weight"] = EXPECTED["old/ln_post"]
    filled = fill_params(shapes, tensors, Ultravox.checkpoint_map(config))
    params = {path: jnp.asarray(array) for path, array in filled.items()}
    rows = np.asarray(encode(graphdef, params, encoder().inputs([clip(name)], 3)))
    assert np.abs(rows[: FEATURES[name]] - EXPECTED[f"{name}/old_features"]).max() < TOLERANCE


def test_clips_of_one_run_follow_one_another_and_are_as_alone() -> None:
    names = tuple(FEATURES)
    rows = encoded(names, 8)
    assert np.isfinite(rows).all()
    ends = np.cumsum(list(FEATURES.values()))
    for own, name in zip(np.split(rows, ends), names, strict=False):
        alone = encoded((name,), encoder().units(clip(name)))[: FEATURES[name]]
        np.testing.assert_allclose(own, alone, rtol=0, atol=1e-5)


def test_a_run_of_padding_alone_is_finite() -> None:
    assert np.isfinite(encoded((), 2)).all()


def test_frames_of_padding_are_not_heard() -> None:
    """Where the mels of two clips differ beyond their frames, by more than the convolutions see,
    only the last stack differs: what it has of padding is kept, as published models do."""
    mels = np.pad(clip("odd").mels, ((0, 0), (0, 39)))
    loud = mels.copy()
    loud[:, 64:] = 1
    sounds = [Spectrogram(mels, 61), Spectrogram(loud, 61)]
    rows = np.asarray(encode(load().graphdef, load().params, encoder().inputs(sounds, 2)))
    np.testing.assert_allclose(rows[:7], rows[8:15], rtol=0, atol=1e-5)
    assert np.abs(rows[7] - rows[15]).max() > 1e-2


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_features_in_types_of_16_bits(dtype: Any) -> None:
    _, shapes, _ = functional.abstract(Ultravox, load().config, dtype)
    graphdef, params = load_checkpoint(Ultravox, load().config, FOLDER, dtype)
    assert {name: array.dtype for name, array in params.items()} == {
        name: shape.dtype for name, shape in shapes.items()
    }
    rows = encode(graphdef, params, encoder().inputs([clip("odd")], 1))
    assert rows.dtype == dtype
    error = np.asarray(rows, np.float32)[: FEATURES["odd"]] - EXPECTED["odd/features"]
    assert np.sqrt(np.mean(error**2)) < 0.05 * EXPECTED["odd/features"].std()


def test_the_last_stack_is_filled_with_zeros() -> None:
    states = jnp.arange(1.0, 11).reshape(1, 5, 2)
    np.testing.assert_array_equal(stacked(states, 3), [[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 0, 0]])


@pytest.mark.parametrize("prompt", PROMPTS)
def test_whole_prompts(prompt: str) -> None:
    tokens, rows, index = heard(prompt)
    model, args = load(), (jnp.asarray(tokens), features_of(rows, index))
    logits, _ = forward(model.graphdef, model.params, None, None, *args)
    assert np.abs(logits - EXPECTED[f"{prompt}/logits"]).max() < TOLERANCE


def test_paged_cache_in_chunks_that_split_clips() -> None:
    """All prompts side by side over a pool full of NaN, then decode to the reference tokens."""
    paged = PagedFeatures(load(), map(heard, PROMPTS), CHUNK)
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


def test_any_token_may_be_the_placeholder() -> None:
    """What stands there is a feature, so that its row of the embedding is not seen."""
    tokens, rows, index = heard("one")
    tokens = np.where(tokens == load().config.audio_token, 0, tokens)
    args = jnp.asarray(tokens), features_of(rows, index)
    logits, _ = forward(load().graphdef, load().params, None, None, *args)
    assert np.abs(logits - EXPECTED["one/logits"]).max() < TOLERANCE


@pytest.mark.parametrize(
    ("index", "vocabulary", "token"),
    [
        (127, 128, 127),
        (128, 128, 0),
        (None, 128, 0),
        (None, 128256, 128002),
        (128256, 128256, 128002),
        (128255, 128256, 128255),
        (32000, 128256, 128002),
        (32000, 32064, 0),
    ],
)
def test_the_placeholder_is_in_the_vocabulary(
    index: int | None, vocabulary: int, token: int
) -> None:
    """Old files name 32000 whatever it is."""
    text = fields()["text_config"] | {"vocab_size": vocabulary}
    changed = {"audio_token_index": index, "text_config": text}
    assert UltravoxConfig.from_hf(fields() | changed).audio_token == token


def test_inputs_have_the_shapes_that_size_gives() -> None:
    inputs = encoder().inputs([clip("short"), clip("long")], 5)
    shapes = encoder().abstract(5)
    assert {n: (a.shape, a.dtype) for n, a in inputs.items()} == {
        n: (s.shape, s.dtype) for n, s in shapes.items()
    }
    np.testing.assert_array_equal(inputs["mels"][0, :, :32], clip("short").mels)
    np.testing.assert_array_equal(inputs["mels"][3, :, :17], clip("long").mels[:, 200:])
    assert not inputs["mels"][0, :, 32:].any()
    assert not inputs["mels"][3, :, 17:].any()
    assert inputs["frames"].tolist() == [32, 100, 100, 17, 0]
    assert inputs["ends"].tolist() == [32, 100, 100, 100, 0]
    assert inputs["rows"][:33].tolist() == [0, 1, 2, 3, *range(13, 39), 39, 40, 41]
    assert encoder().num_patches(5) == 250
    assert [encoder().size_for(tokens) for tokens in (1, 13, 14, 39)] == [1, 1, 2, 3]


def test_long_clips_are_encoded_in_pieces() -> None:
    assert [encoder().units(clip(name)) for name in FEATURES] == [3, 1, 1, 1, 1]
    pieces = encoder().parts(clip("long"))
    assert [(piece.mels.shape, piece.frames) for piece in pieces] == [
        ((16, 100), 100),
        ((16, 100), 100),
        ((16, 100), 17),
    ]
    assert [encoder().num_tokens(piece) for piece in pieces] == [13, 13, 3]
    runs = [encode(load().graphdef, load().params, encoder().inputs([p], 1)) for p in pieces]
    rows = np.concatenate([run[:count] for run, count in zip(runs, (13, 13, 3), strict=True)])
    np.testing.assert_allclose(rows, encoded(("long",), 3)[:29], rtol=0, atol=1e-5)


def test_mels_must_have_the_bands_of_the_tower() -> None:
    match = "prepared with 80 mel bins, but the model takes 16: feature_size in preprocessor_config"
    with pytest.raises(ModelConfigError, match=match):
        encoder().inputs([Spectrogram(np.zeros((80, 40), np.float32), 40)], 1)


def test_names_of_parts_that_are_models_of_their_own() -> None:
    """A Whisper behind `audio_tower.`, with a decoder that is not used, and a bare Llama."""
    cmap = Ultravox.checkpoint_map(load().config)
    stored = {cmap.canonical(name) for name in load_file(FOLDER / "model.safetensors")}
    whole = {re.sub(r"^audio_tower\.", "audio_tower.model.encoder.", name) for name in stored}
    assert {cmap.canonical(name) for name in whole} == stored
    bare = {re.sub(r"^model\.", "language_model.", name) for name in stored}
    assert {cmap.canonical(name) for name in bare} == stored
    assert whole != stored != bare
    for extra in ("audio_tower.model.decoder.layers.0.fc1.weight", "audio_tower.proj_out.weight"):
        assert cmap.is_ignored(cmap.canonical(extra))
    assert not cmap.is_ignored(cmap.canonical("audio_tower.layers.0.self_attn.k_proj.bias"))
    inverse = "language_model.model.layers.0.self_attn.rotary_emb.inv_freq"
    assert cmap.is_ignored(cmap.canonical(inverse))


def test_canonical_names_stay() -> None:
    for piece in Ultravox.checkpoint_map(load().config).pieces:
        assert canonical(piece.tensor) == piece.tensor


def test_ultravox_v0_5_of_llama_3_2_1b() -> None:
    """The sizes of its parts, with the text's fields where the file only names that model."""
    text = {
        "head_dim": 64,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "max_position_embeddings": 131072,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_hidden_layers": 16,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "vocab_size": 128256,
    }
    audio = {
        "d_model": 1280,
        "encoder_attention_heads": 20,
        "encoder_ffn_dim": 5120,
        "encoder_layers": 32,
        "model_type": "whisper",
        "num_mel_bins": 128,
    }
    hf = {
        "architectures": ["UltravoxModel"],
        "audio_config": audio,
        "hidden_size": 4096,
        "projector_act": "swiglu",
        "projector_ln_mid": True,
        "stack_factor": 8,
        "text_config": text,
        "text_model_id": "meta-llama/Llama-3.2-1B-Instruct",
    }
    config = UltravoxConfig.from_hf(hf, 8192)
    assert (config.hidden_size, config.num_layers, config.tie_embeddings) == (2048, 16, True)
    assert (config.projector_size, config.stack, config.norm_mid) == (2048, 8, True)
    assert (config.audio.num_mel_bins, config.audio.num_frames) == (128, 3000)
    assert config.audio_token == 128002
    assert [config.rows(frames) for frames in (1, 16, 17, 2999, 3000, 3001)] == [
        *(1, 1, 2),
        *(188, 188, 189),
    ]
    _, shapes, _ = functional.abstract(Ultravox, config, jnp.bfloat16)
    assert shapes["projector.norm.weight"].shape == (10240,)
    assert shapes["projector.gate.weight"].shape == (2048, 10240)
    assert "head.weight" not in shapes


def test_what_a_file_leaves_out() -> None:
    """Llama 2 7B and Whisper tiny, as `transformers` has it."""
    config = UltravoxConfig.from_hf({"architectures": ["UltravoxModel"]})
    assert (config.vocab_size, config.hidden_size, config.num_kv_heads) == (32000, 4096, 32)
    assert (config.max_model_len, config.norm_eps, config.tie_embeddings) == (2048, 1e-6, False)
    assert (config.audio.hidden_size, config.audio.num_layers) == (384, 4)
    assert (config.audio.num_mel_bins, config.audio.max_states) == (80, 1500)
    assert (config.stack, config.projector_size, config.norm_mid) == (8, 2048, False)


def with_audio(**changed: Any) -> dict[str, Any]:
    return fields() | {"audio_config": fields()["audio_config"] | changed}


@pytest.mark.parametrize(
    ("hf", "error", "match"),
    [
        (
            fields() | {"text_config": {"model_type": "gemma3"}},
            UnsupportedModelError,
            "text_config.*'gemma3'; only 'llama'",
        ),
        (
            with_audio(model_type="wav2vec2"),
            UnsupportedModelError,
            "audio_config.*'wav2vec2'; only 'whisper'",
        ),
        (
            fields() | {"projector_act": "gelu"},
            UnsupportedModelError,
            "'projector_act'.* is 'gelu'; only 'swiglu'",
        ),
        (
            fields() | {"num_projector_layers": 2},
            UnsupportedModelError,
            "'num_projector_layers'.* is 2; only 0",
        ),
        (
            fields() | {"audio_latency_block_size": 100},
            UnsupportedModelError,
            "'audio_latency_block_size'.* is 100; only 0",
        ),
        (fields() | {"hidden_size": 49}, ModelConfigError, "'hidden_size'.* is 49; it must be ev"),
        (fields() | {"stack_factor": 0}, ModelConfigError, "'stack_factor'.* is 0; .*at least 1"),
        (
            fields() | {"audio_token_index": -1},
            ModelConfigError,
            "'audio_token_index'.* is -1; .*at least 0",
        ),
        (with_audio(encoder_layers=0), ModelConfigError, "'encoder_layers'.* is 0; .*at least 1"),
    ],
)
def test_what_is_refused(hf: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        UltravoxConfig.from_hf(hf)


def test_parameters_of_towers_can_be_told_by_their_names() -> None:
    """The rest are Llama's, and each weight of the towers has an axis that can be split."""
    config = load().config
    _, shapes, axes = functional.abstract(Ultravox, config, jnp.float32)
    towers = tuple(f"{name}." for name in Ultravox.towers)
    mine = {name for name in shapes if name.startswith(towers)}
    assert shapes.keys() - mine == functional.abstract(Llama, config, jnp.float32)[1].keys()
    split = re.compile(r".*\.(qkv|[qv]_bias|out\.weight|gate\.weight|up\.weight|down\.weight)")
    names = list(filter(split.fullmatch, mine))
    assert len(names) == 2 * 6 + 3
    for name in names:
        assert {"vision_heads", "mlp"} & set(axes[name]), name
