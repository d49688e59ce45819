"""Log-mel spectrograms against those of `transformers`, from the fixture of Qwen2-Audio."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quire.errors import ModelConfigError, UnsupportedModelError
from quire.multimodal.errors import MediaError
from quire.multimodal.log_mel import LogMel, mel_filters

FOLDER = Path(__file__).resolve().parent.parent / "fixtures" / "audio" / "qwen2_audio"
EXPECTED = np.load(FOLDER / "expected.npz")
CLIPS = ("long", "short", "odd", "tiny")
TOLERANCE = {"rtol": 0, "atol": 1e-4}


def fields() -> dict[str, Any]:
    return json.loads((FOLDER / "preprocessor_config.json").read_text())


def samples(name: str) -> np.ndarray:
    return EXPECTED[f"{name}/samples"].astype(np.float32) / 32768


@pytest.mark.parametrize("name", CLIPS)
def test_mels_and_mask(name: str) -> None:
    spectrogram = LogMel.from_hf(fields())(samples(name))
    assert spectrogram.mels.dtype == np.float32
    np.testing.assert_allclose(spectrogram.mels, EXPECTED[f"{name}/mels"], **TOLERANCE)
    np.testing.assert_array_equal(spectrogram.mask, EXPECTED[f"{name}/mask"])
    assert spectrogram.frames == EXPECTED[f"{name}/mask"].sum()


@pytest.mark.parametrize("name", CLIPS)
def test_thirty_seconds_of_128_bins(name: str) -> None:
    process = LogMel.from_hf({"feature_size": 128, "chunk_length": 30})
    mels = process(samples(name)).mels
    assert mels.shape == (128, 3000) == (process.bins, process.max_frames)
    np.testing.assert_allclose(
        mels[:, EXPECTED["full/frames"]], EXPECTED[f"full/{name}"], **TOLERANCE
    )


def test_what_a_file_leaves_out_is_as_in_whisper() -> None:
    assert LogMel.from_hf({}) == LogMel()
    assert (LogMel().bins, LogMel().max_frames, LogMel().window) == (80, 3000, 400)


def test_another_length() -> None:
    process = LogMel.from_hf(fields(), max_length=8000)
    cut, whole = process(samples("odd")), process(samples("odd")[:8000])
    assert cut.mels.shape == (16, 50)
    assert cut.frames == 50
    np.testing.assert_array_equal(cut.mels, whole.mels)


@pytest.mark.parametrize(
    ("count", "frames"), [(1, 1), (160, 1), (161, 2), (15999, 100), (16000, 100), (40000, 100)]
)
def test_frames_of_a_sound(count: int, frames: int) -> None:
    process = LogMel.from_hf(fields())
    assert process.num_frames(count) == frames == process(np.ones(count)).mask.sum()


def test_silence_has_one_value() -> None:
    mels = LogMel.from_hf(fields())(np.zeros(3000, np.float32)).mels
    np.testing.assert_array_equal(mels, np.full((16, 100), -1.5, np.float32))


def test_a_tone_is_loudest_in_its_band() -> None:
    """Bands of 128 bins at 1000 Hz are 40 Hz wide, as the spectrum's are."""
    process = LogMel(bins=128, max_length=16000)
    mels = process(np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000)).mels
    loudest = mels[:, 50].argmax()
    assert mel_filters(128, 201, 16000)[loudest].argmax() * 40 == 1000


@pytest.mark.parametrize(
    ("shape", "match"), [((0,), "no samples"), ((100, 2), r"shape \[100, 2\].*one channel")]
)
def test_sounds_that_are_refused(shape: tuple[int, ...], match: str) -> None:
    with pytest.raises(MediaError, match=match):
        LogMel()(np.zeros(shape))


@pytest.mark.parametrize(
    ("changed", "error", "match"),
    [
        ({"feature_size": 0}, ModelConfigError, "'feature_size'.* is 0; .*at least 1"),
        ({"hop_length": "160"}, ModelConfigError, "'hop_length'.*'160'.*integer"),
        ({"chunk_length": 1.5}, ModelConfigError, "'chunk_length'.* is 1.5"),
        ({"padding_side": "left"}, UnsupportedModelError, "'padding_side' 'left'; only 'right'"),
        ({"do_normalize": True}, UnsupportedModelError, "'do_normalize' True; only False"),
        ({"dither": 0.1}, UnsupportedModelError, "'dither' 0.1; only 0.0"),
        (
            {"feature_extractor_type": "ClapFeatureExtractor"},
            UnsupportedModelError,
            "'ClapFeatureExtractor'; only 'WhisperFeatureExtractor'",
        ),
    ],
)
def test_what_is_refused(changed: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        LogMel.from_hf(fields() | changed)
