"""Sounds of every kind come out mono at the model's rate, and bombs and rubbish do not come in."""

import hashlib
import io
import tracemalloc
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings, strategies as st

from quire.multimodal.errors import MediaError
from quire.multimodal.sounds import digest, to_samples

RATE = 16000
LOSSLESS = [("WAV", None), ("WAVEX", None), ("RF64", None), ("FLAC", None)]
LOSSY = [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)]


def sine(rate: int = RATE, hertz: float = 440.0, seconds: float = 1.0) -> np.ndarray:
    """Float32 [N] of amplitude a half, on the grid of 16 bits."""
    wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)
    return (np.rint(wave * 32768) / 32768).astype(np.float32)


def encoded(
    samples: np.ndarray, kind: str = "WAV", codec: str | None = None, rate: int = RATE
) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, codec, format=kind)
    return file.getvalue()


def flac_of_claimed_length(samples: np.ndarray, frames: int, rate: int = RATE) -> bytes:
    """0 frames are of unknown length."""
    data = bytearray(encoded(samples, "FLAC", rate=rate))
    data[21] = data[21] & 0xF0 | frames >> 32
    data[22:26] = (frames & 0xFFFFFFFF).to_bytes(4, "big")
    return bytes(data)


TAG = b"ID3\4\0\0\0\0\1\x0a" + b"TIT2\0\0\0\5\0\0\3name" + bytes(123)
"""Of ID3, 10 bytes and 138 more."""


def amplitude(samples: np.ndarray, hertz: float) -> float:
    """Of one frequency, in the middle half of a sound."""
    middle = samples[len(samples) // 4 : 3 * len(samples) // 4]
    phases = np.exp(-2j * np.pi * hertz * np.arange(len(middle)) / RATE)
    return float(2 * np.abs(np.mean(middle * phases)))


@pytest.mark.parametrize(("kind", "codec"), LOSSLESS)
def test_lossless_files(kind: str, codec: str | None) -> None:
    data = encoded(sine(), kind, codec)
    for sound in (data, bytearray(data), memoryview(data)):
        samples = to_samples(sound, RATE)
        assert samples.dtype == np.float32
        np.testing.assert_array_equal(samples, sine())


@pytest.mark.parametrize("codec", ["PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"])
def test_codecs_of_wav(codec: str) -> None:
    coarse = codec in ("PCM_U8", "ULAW", "ALAW")
    samples = to_samples(encoded(sine(), "WAV", codec), RATE)
    np.testing.assert_allclose(samples, sine(), atol=0.02 if coarse else 0, rtol=0)


@pytest.mark.parametrize(("kind", "codec"), LOSSY)
def test_lossy_files(kind: str, codec: str | None) -> None:
    samples = to_samples(encoded(sine(), kind, codec), RATE)
    assert (samples.dtype, samples.shape) == (np.float32, (RATE,))
    assert amplitude(samples, 440) == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("kind", ["FLAC", "MP3"])
def test_a_tag_is_skipped(kind: str) -> None:
    data = encoded(sine(), kind)
    np.testing.assert_array_equal(to_samples(TAG + data, RATE), to_samples(data, RATE))


@pytest.mark.parametrize(("kind", "codec"), LOSSLESS + LOSSY)
def test_channels_of_files_are_averaged(kind: str, codec: str | None) -> None:
    stereo = np.stack([sine(), np.zeros(RATE, np.float32)], axis=1)
    samples = to_samples(encoded(stereo, kind, codec), RATE)
    assert samples.shape == (RATE,)
    assert amplitude(samples, 440) == pytest.approx(0.25, rel=0.05)
    if (kind, codec) in LOSSLESS:
        np.testing.assert_array_equal(samples, sine() / 2)


@pytest.mark.parametrize("rate", [8000, 44100, 192000])
def test_resampling_keeps_frequency_and_amplitude(rate: int) -> None:
    for sound in (encoded(sine(rate), rate=rate), (sine(rate), rate)):
        samples = to_samples(sound, RATE)
        assert (samples.dtype, samples.shape) == (np.float32, (RATE,))
        assert amplitude(samples, 440) == pytest.approx(0.5, abs=1e-4)
        assert amplitude(samples, 880) < 1e-4


def test_resampling_keeps_no_frequency_that_the_rate_cannot() -> None:
    assert np.abs(to_samples((sine(48000, 12000), 48000), RATE)[100:-100]).max() < 1e-4


def test_resampling_by_blocks_is_resampling_at_once() -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, 300_000).astype(np.float32)
    whole = soxr.resample(noise, 44100, RATE)
    np.testing.assert_array_equal(to_samples((noise, 44100), RATE), whole)
    np.testing.assert_array_equal(to_samples(encoded(noise, "WAV", "FLOAT", 44100), RATE), whole)


@pytest.mark.parametrize(("kind", "codec"), LOSSLESS + LOSSY)
def test_decoding_by_blocks_is_decoding_at_once(kind: str, codec: str | None) -> None:
    noise = np.random.default_rng(0).uniform(-0.2, 0.2, 150_000)
    data = encoded(noise, kind, codec)
    whole, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    np.testing.assert_allclose(to_samples(data, RATE), whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "samples",
    [
        np.array([128, 255, 0, 192], np.uint8),
        np.array([0, 127 << 8, -1 << 15, 1 << 14], np.int16),
        np.array([0, 127 << 8, -1 << 15, 1 << 14], ">i2"),
        np.array([0, 127 << 24, -1 << 31, 1 << 30], np.int32),
        np.array([0, 127 / 128, -1, 0.5], np.float16),
        np.array([0, 127 / 128, -1, 0.5], np.float32),
        np.array([0, 127 / 128, -1, 0.5], ">f8"),
        [0, 127 / 128, -1, 0.5],
    ],
)
def test_types_of_samples(samples: Any) -> None:
    expected = np.array([0, 127 / 128, -1, 0.5], np.float32)
    sounds: list[Any] = [samples, *((samples, kind(RATE)) for kind in (int, float, np.int32))]
    for sound in sounds:
        made = to_samples(sound, RATE)
        assert made.dtype == np.float32
        np.testing.assert_array_equal(made, expected)
    np.testing.assert_array_equal(to_samples([0, 1, -1], RATE), np.array([0, 1, -1], np.float32))


def test_the_shorter_axis_is_of_channels() -> None:
    stereo = np.stack([sine(), -3 * sine()], axis=1)
    for samples in (stereo, stereo.T, np.ascontiguousarray(stereo.T), stereo.T.tolist()):
        np.testing.assert_array_equal(to_samples((samples, RATE), RATE), -sine())
    for samples in (sine()[None], sine()[:, None], [sine()]):
        np.testing.assert_array_equal(to_samples((samples, RATE), RATE), sine())
    square = np.array([[0.5, 0.0], [0.5, -1.0]])
    np.testing.assert_array_equal(to_samples((square, RATE), RATE), [0.25, -0.25])


def test_what_is_given_is_left_as_it_is() -> None:
    for array in (sine(), np.stack([sine()] * 2), np.arange(9, dtype=np.int16)):
        before = array.copy()
        array.flags.writeable = False
        made = to_samples((array, RATE), RATE)
        made[:] = 7
        np.testing.assert_array_equal(array, before)


def test_silence_is_a_sound() -> None:
    np.testing.assert_array_equal(to_samples(np.zeros(10), RATE), np.zeros(10, np.float32))
    assert not to_samples(encoded(np.zeros(9000), "FLAC", rate=8000), RATE).any()


@pytest.mark.parametrize(
    ("sound", "message"),
    [
        ("hello.wav", "type str; allowed are the bytes of a file.*Read files"),
        (None, "type NoneType"),
        (3.0, "type float"),
        ((0.1, 0.2), "type float"),
        ((b"RIFF", RATE), "type bytes"),
        ([], "no samples"),
        (np.zeros(0, np.int16), "no samples; it must have at least one"),
        ((np.zeros((0, 2)), RATE), "no samples"),
        ((np.zeros((2, 0)), RATE), "no samples"),
        ((np.zeros(1), 768000), "no samples"),
        (np.zeros((2, 9)), r"without a rate.*\(2, 9\).*at the model's 16000 Hz. Give a tuple"),
        ([np.zeros(9), np.zeros(9)], "without a rate"),
        ((np.zeros(9), np.zeros(9), np.zeros(9)), "without a rate"),
        (np.array(0.5), r"shape \(\)"),
        ((np.array(0.5), RATE), r"shape \(\)"),
        ((np.zeros((1, 2, 9)), RATE), r"shape \(1, 2, 9\).*Leave out the batch"),
        ((np.zeros((9, 10)), RATE), "9 channels, and at most 8 are allowed. Mix"),
        (([[0.1, 0.2], [0.1]], RATE), "list of 2 that makes no array.*one length"),
        (np.zeros(9, np.complex64), "dtype complex64; allowed are uint8.*Convert"),
        ([0.1, 1j], "dtype complex128"),
        (np.zeros(9, bool), "dtype bool"),
        (np.zeros(9, np.int64), "dtype int64"),
        (np.zeros(9, np.uint16), "dtype uint16"),
        (["0.1", "0.2"], "dtype <U3"),
        ([0.1, None], "dtype object"),
        (np.array([0, np.nan, 0]), "not finite"),
        (np.array([0, -np.inf]), r"not finite \(inf\); allowed are -1..1"),
        (np.array([0, 1e300]), "not finite"),
        ((np.array([[np.inf, -np.inf]] * 3), RATE), "not finite"),
        (np.array([0.0, -20000.0]), "as large as 20000; allowed .* Divide .* by 32768"),
        ([0, 1000, -1000], "as large as 1000"),
    ],
)
def test_arrays_that_are_no_sound(sound: Any, message: str) -> None:
    with pytest.raises(MediaError, match=message):
        to_samples(sound, RATE)


@pytest.mark.parametrize(
    "rate", [0, -16000, 999, 768001, True, float("nan"), float("inf"), "16000", None, 1j, [RATE]]
)
def test_rates_that_are_refused(rate: Any) -> None:
    with pytest.raises(MediaError, match="a rate of .*; allowed are 1000 to 768000"):
        to_samples((sine(), rate), RATE)


@pytest.mark.parametrize("rate", [999, 768001, (1 << 31) - 1])
def test_rates_of_files_that_are_refused(rate: int) -> None:
    with pytest.raises(MediaError, match=f"a rate of {rate}; allowed"):
        to_samples(encoded(sine(), rate=rate), RATE)


@pytest.mark.parametrize("rate", [1000, 768000])
def test_rates_at_the_limits(rate: int) -> None:
    for sound in (encoded(np.zeros(rate), rate=rate), (np.zeros(rate), rate)):
        assert to_samples(sound, RATE).shape == (RATE,)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes"),
        (b"hello, world", r"12 bytes that begin with b'hello, w' .*Send one of WAV .*, MP3\."),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "unknown format"),
        (b"\0\0\0\x18ftypmp42" + bytes(99), "unknown format"),
        (b"RIFF\x20\0\0\0AVI LIST" + bytes(99), "no sound"),
        (b"OggS", "no sound"),
        (b"\xff\xfb" + bytes(99), "no sound"),
        (encoded(sine(), "AIFF"), "unknown format"),
        (encoded(sine(), "AU"), "unknown format"),
        (TAG + encoded(sine(), "AIFF"), "unknown format"),
        (b"ID3", "unknown format"),
        (encoded(sine(), "WAV", "IMA_ADPCM"), "WAV with IMA_ADPCM"),
        (encoded(sine(), "WAV", "GSM610"), "WAV with GSM610"),
        (encoded(np.zeros((9, 9))), "9 channels, and at most 8"),
        (encoded(np.zeros(0)), "no samples"),
        (encoded(np.array([0, np.nan]), "WAV", "FLOAT"), "not finite"),
        (encoded(np.array([0, np.inf]), "WAV", "DOUBLE"), "not finite"),
        (encoded(np.array([0, 9999.0]), "WAV", "FLOAT"), "as large as 9999"),
    ],
    ids=lambda value: "file" if isinstance(value, bytes) else None,  # some hold the time of day
)
def test_files_that_are_no_sound(data: bytes, message: str) -> None:
    with pytest.raises(MediaError, match=message) as raised:
        to_samples(data, RATE)
    assert "object at" not in str(raised.value)


@pytest.mark.parametrize(("kind", "codec"), [("WAV", None), *LOSSY])
def test_a_file_that_was_cut_gives_what_is_there(kind: str, codec: str | None) -> None:
    data = encoded(np.random.default_rng(0).uniform(-0.3, 0.3, 12 * RATE), kind, codec)
    samples = to_samples(data[: len(data) // 2], RATE)
    assert 4 * RATE < len(samples) < 8 * RATE
    np.testing.assert_allclose(samples, to_samples(data, RATE)[: len(samples)], atol=1e-6)
    with pytest.raises(MediaError, match="no sound that can be read|no samples"):
        to_samples(data[:40], RATE)


def test_a_flac_that_was_cut_is_refused() -> None:
    data = encoded(sine(), "FLAC")
    with pytest.raises(MediaError, match=r"\(FLAC, PCM_16\) cannot be decoded: .*the whole file"):
        to_samples(data[: len(data) // 2], RATE)


def test_the_limit_of_seconds_is_exact() -> None:
    for sound in (encoded(sine(8000), rate=8000), (sine(8000), 8000), sine(), sine().tolist()):
        assert len(to_samples(sound, RATE, max_seconds=1)) == RATE
        with pytest.raises(MediaError, match="000 Hz, and at most 0.9999 seconds are allowed"):
            to_samples(sound, RATE, max_seconds=0.9999)


def test_a_claimed_length_is_refused_before_decoding() -> None:
    data = flac_of_claimed_length(sine(), 1 << 35)
    with pytest.raises(MediaError, match=f"{1 << 35} samples at 16000 Hz, and at most 600 seconds"):
        to_samples(data[:1000], RATE)


def test_a_flac_of_unknown_length() -> None:
    data = flac_of_claimed_length(sine(seconds=30), 0)
    np.testing.assert_array_equal(to_samples(data, RATE), sine(seconds=30))
    with pytest.raises(MediaError, match="at most 7 seconds"):
        to_samples(data, RATE, max_seconds=7)


def peak_bytes(data: bytes, max_seconds: float) -> int:
    """Of making samples, or of refusing to."""
    tracemalloc.start()
    try:
        to_samples(data, RATE, max_seconds=max_seconds)
    except MediaError:
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def test_silence_of_a_thousandth_does_not_fill_memory() -> None:
    silence = np.zeros((60 * 96000, 2), np.int16)  # 44 MiB of floats
    data = flac_of_claimed_length(silence, 0, rate=96000)
    assert len(data) < silence.nbytes / 500
    assert peak_bytes(data, max_seconds=1) < 4 << 20
    assert peak_bytes(data, max_seconds=60) < 16 << 20


def test_digests() -> None:
    ramp = np.linspace(0, 1, 9, dtype=np.float32)
    assert digest(ramp) == hashlib.sha256(ramp.tobytes()).digest()
    assert digest(-0.0 * ramp) == digest(0 * ramp)
    stereo = np.stack([sine()] * 2, axis=1)
    for sound in (encoded(sine()), encoded(stereo, "FLAC"), (stereo.T, RATE), sine().tolist()):
        assert digest(to_samples(sound, RATE)) == digest(sine())
    assert digest(np.repeat(sine(), 2)[::2]) == digest(sine())
    assert digest(sine()[1:]) != digest(sine())
    for samples in (stereo, sine().astype(np.float64)):
        with pytest.raises(MediaError, match="float32 samples .*; use to_samples"):
            digest(samples)


WHOLE = [encoded(sine(seconds=0.2), *kind) for kind in LOSSLESS + LOSSY]


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_corrupt_files(data: st.DataObject) -> None:
    broken = bytearray(data.draw(st.sampled_from(WHOLE)))
    for place in data.draw(st.lists(st.integers(0, min(len(broken), 400) - 1), max_size=5)):
        broken[place] = data.draw(st.integers(0, 255))
    del broken[data.draw(st.integers(1, len(broken))) :]
    try:
        assert np.abs(to_samples(broken, RATE, max_seconds=9)).max() < 32
    except MediaError:
        pass


@settings(deadline=None, max_examples=100)
@given(
    start=st.sampled_from([b"", b"RIFF", b"RF64", b"fLaC", b"OggS", b"ID3", b"\xff\xfb"]),
    rest=st.binary(max_size=400),
)
def test_arbitrary_bytes(start: bytes, rest: bytes) -> None:
    try:
        assert len(to_samples(start + rest, RATE)) < 1 << 16  # a frame of MP3 comes by chance
    except MediaError:
        pass
