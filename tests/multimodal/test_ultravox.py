"""Sounds for Ultravox against those of `transformers`, from its fixture."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from quire.models.ultravox import UltravoxConfig, UltravoxEncoder
from quire.multimodal.errors import MediaError
from quire.multimodal.log_mel import LogMel
from quire.multimodal.processors import FORMATS
from quire.multimodal.sounds import MAX_SECONDS
from quire.multimodal.ultravox import UltravoxSounds

FOLDER = Path(__file__).resolve().parent.parent / "fixtures" / "audio" / "ultravox"
EXPECTED = np.load(FOLDER / "expected.npz")
CONFIG = UltravoxConfig.from_hf(json.loads((FOLDER / "config.json").read_text()))
FORMAT = FORMATS["UltravoxModel"]["audio"]
CLIPS = ("long", "full", "short", "odd", "tiny")


def sounds() -> UltravoxSounds:
    return FORMAT.load(json.loads((FOLDER / "preprocessor_config.json").read_text()), CONFIG)


def samples(name: str) -> np.ndarray:
    return EXPECTED[f"{name}/samples"].astype(np.float32) / 32768


@pytest.mark.parametrize("name", CLIPS)
def test_mels_and_features(name: str) -> None:
    spectrogram = sounds()(samples(name))
    np.testing.assert_allclose(spectrogram.mels, EXPECTED[f"{name}/mels"], rtol=0, atol=1e-5)
    assert spectrogram.frames == spectrogram.mels.shape[1]
    tokens = sounds().num_tokens(len(samples(name)))
    assert tokens == len(EXPECTED[f"{name}/features"])
    assert tokens == UltravoxEncoder(CONFIG).num_tokens(spectrogram)


def test_bounds() -> None:
    """Ten minutes are six hundred pieces, since this tower takes a second."""
    assert sounds().sampling_rate == 16000
    assert sounds().max_tokens == sounds().num_tokens(int(MAX_SECONDS) * 16000) == 600 * 13
    encoder = UltravoxEncoder(CONFIG)
    parts = encoder.parts(sounds()(samples("long")))
    assert max(map(encoder.num_tokens, parts)) == sounds().max_part_tokens == 13


@pytest.mark.parametrize(("count", "tokens"), [(1, 1), (1280, 1), (1281, 2), (16000, 13)])
def test_features_of_a_sound(count: int, tokens: int) -> None:
    """One for eight frames, of which the last may be begun."""
    assert sounds().num_tokens(count) == tokens
    assert sounds()(np.zeros(count, np.float32)).frames == max(-(-count // 160), 2)


def test_a_sound_without_samples() -> None:
    with pytest.raises(MediaError, match="no samples"):
        sounds().num_tokens(0)


def test_equal_processors_prepare_alike() -> None:
    """What is kept is found by them."""
    assert repr(sounds()) == repr(sounds())
    assert sounds() == UltravoxSounds(LogMel(bins=16, max_length=16000), CONFIG)
    other = dataclasses.replace(CONFIG, stack=2)
    assert sounds() != dataclasses.replace(sounds(), tower=other)
