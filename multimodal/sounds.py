"""Whatever a request gives as a sound, as mono samples at a model's rate.

Sounds go through in blocks, so memory is bounded by what comes out: neither a header nor a codec
that shrinks silence a thousandfold is trusted. A file that was cut gives what comes before the cut
where its format allows, as players do: WAV, MP3 and OGG, whose headers are often wrong about
length. A FLAC file that was cut is refused.
"""

import functools
import hashlib
import math
import numbers
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import soundfile
import soxr

from .errors import MediaError

SoundInput = (
    bytes | bytearray | memoryview | np.ndarray | list[float] | tuple[np.ndarray | list[Any], float]
)

MAX_SECONDS = 600.0
"""10 minutes are 37 MiB at 16 kHz."""
MAX_CHANNELS = 8
MIN_RATE, MAX_RATE = 1000, 768000
"""Samples a second."""
MAX_LEVEL = 16.0
"""Loud floats pass 1 by a little; beyond this they are integers that were not scaled."""
FORMATS = ("WAV (uncompressed)", "FLAC", "OGG (Vorbis or Opus)", "MP3")
"""Only these decoders see bytes of a request; others of libsndfile are seldom used."""

_MAGIC = (
    *(b"RIFF", b"RF64", b"fLaC", b"OggS"),
    *(b"\xff\xfb", b"\xff\xfa", b"\xff\xf3", b"\xff\xf2", b"\xff\xe3", b"\xff\xe2"),
)
"""How files begin, checked before libsndfile looks; an MP3 does with a frame of layer III."""
_PCM = ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW")
_CODECS = {
    "WAV": _PCM,
    "WAVEX": _PCM,
    "RF64": _PCM,
    "FLAC": ("PCM_S8", "PCM_16", "PCM_24"),
    "OGG": ("VORBIS", "OPUS"),
    "MP3": ("MPEG_LAYER_III",),
}
"""By container, as libsndfile names them: a RIFF may hold nearly any codec."""
_UNKNOWN_FRAMES = (1 << 63) - 1
"""What libsndfile says of a FLAC stream that does not tell its length."""
_INTEGERS = {"u1": (128, 128), "i2": (0, 1 << 15), "i4": (0, 1 << 31)}
"""The middle and the amplitude of integer samples, by kind and bytes."""
_BLOCK = 1 << 16
"""Frames that are worked on at a time. A frame is a sample of each channel."""


def to_samples(sound: SoundInput, rate: int, *, max_seconds: float = MAX_SECONDS) -> np.ndarray:
    """Float32 samples [N] of its own, mostly in -1..1, of `sound`, which is left as it is.

    `sound` is an encoded file, samples [N] at the model's `rate`, or a tuple of samples and their
    rate in Hz, [N], [N, channels] or [channels, N]: the shorter axis is of channels, the last if
    both are as long. Samples are uint8, int16 or int32 over their whole range, or floats in -1..1,
    as are the numbers of a list. Channels are averaged. Raises MediaError for anything else, and
    for sounds that are empty, broken, not finite, or longer than `max_seconds`.
    """
    if isinstance(sound, bytes | bytearray | memoryview):
        with _opened(bytes(sound)) as file:
            known = 0 if file.frames == _UNKNOWN_FRAMES else file.frames
            _check(known, file.channels, file.samplerate, max_seconds)
            return _mono(_decoded(file), file.samplerate, rate, max_seconds)
    if isinstance(sound, tuple) and len(sound) == 2:
        frames, given_rate = _frames(_array(sound[0])), sound[1]
    else:
        frames, given_rate = _frames(_lone(_array(sound), rate)), rate
    _check(len(frames), frames.shape[1], given_rate, max_seconds)
    return _mono(_scaled(frames), float(given_rate), rate, max_seconds)


def digest(samples: np.ndarray) -> bytes:
    """SHA-256 of samples as `to_samples` gives them: equal for equal samples, however sent."""
    if samples.dtype != np.float32 or samples.ndim != 1:
        raise MediaError(
            f"A digest is of float32 samples [N], not of {samples.dtype} of shape {samples.shape}; "
            "use to_samples."
        )
    unsigned = samples + np.float32(0)  # floats may hold -0, integers of the same sound do not
    return hashlib.sha256(np.ascontiguousarray(unsigned)).digest()


class _Stream(soundfile.SoundFile):
    """Read from front to back: else soundfile seeks after every block, as not all formats can."""

    def seekable(self) -> bool:
        return False


def _opened(data: bytes) -> soundfile.SoundFile:
    """Only the header is read."""
    if not data.startswith(_MAGIC, _tag_size(data)):
        raise _unreadable(data, "unknown format")
    try:
        file = _Stream(_file_of(data))
    except Exception as error:  # hostile bytes may raise more than soundfile says
        raise _unreadable(data, _reason(error)) from None
    if file.subtype not in _CODECS.get(file.format, ()):
        with file:
            raise _unreadable(data, f"{file.format} with {file.subtype}")
    return file


def _file_of(data: bytes) -> int:
    """The descriptor of a file in memory, at its start: libsndfile would read an object of Python
    by many small calls, each of which waits for the interpreter's lock."""
    descriptor = os.memfd_create("sound")
    with open(descriptor, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _tag_size(data: bytes) -> int:
    """Bytes of the ID3 tag that music often begins with, which libsndfile skips."""
    if not data.startswith(b"ID3"):
        return 0
    return 10 + sum((byte & 127) << 7 * (3 - i) for i, byte in enumerate(data[6:10]))


def _unreadable(data: bytes, reason: str) -> MediaError:
    return MediaError(
        f"{len(data)} bytes that begin with {data[:8]!r} are no sound that can be read ({reason}). "
        f"Send one of {', '.join(FORMATS)}."
    )


def _reason(error: Exception) -> str:
    """Without the prefix, which names an object in memory."""
    known = isinstance(error, soundfile.LibsndfileError)
    return error.error_string if known else type(error).__name__


def _check(frames: int, channels: int, rate: float, max_seconds: float) -> None:
    """Before anything is decoded."""
    if not isinstance(rate, numbers.Real) or not MIN_RATE <= rate <= MAX_RATE:  # also for NaN
        raise MediaError(
            f"A sound has a rate of {rate!r}; allowed are {MIN_RATE} to {MAX_RATE} samples a "
            "second. Give the rate in Hz at which it was recorded."
        )
    if channels > MAX_CHANNELS:
        raise MediaError(
            f"A sound has {channels} channels, and at most {MAX_CHANNELS} are allowed. Mix them."
        )
    _check_length(frames, rate, max_seconds)


def _check_length(frames: int, rate: float, max_seconds: float) -> None:
    if frames > max_seconds * rate:
        raise MediaError(
            f"A sound has at least {frames} samples at {rate} Hz, and at most {max_seconds:g} "
            "seconds are allowed. Send a shorter one, or its parts."
        )


def _empty() -> MediaError:
    return MediaError("A sound has no samples; it must have at least one. Leave it out.")


def _decoded(file: soundfile.SoundFile) -> Iterator[np.ndarray]:
    """Blocks of float32 [n, channels]."""
    while True:
        try:
            block = file.read(_BLOCK, dtype="float32", always_2d=True)
        except Exception as error:  # as above: truncated and corrupt data raise by format
            raise MediaError(
                f"A sound ({file.format}, {file.subtype}) cannot be decoded: {_reason(error)}. "
                "Send the whole file, not corrupted."
            ) from None
        if not len(block):
            return
        yield block


def _array(samples: object) -> np.ndarray:
    """Of samples in memory; whole numbers in a list are floats, whose scale is known."""
    if isinstance(samples, np.ndarray):
        return np.asarray(samples)
    if not isinstance(samples, list | tuple):
        raise MediaError(
            f"A sound is of type {type(samples).__name__}; allowed are the bytes of a file, a "
            "numpy array [N], and a tuple of samples and their rate. Read files and fetch URLs "
            "first."
        )
    try:
        array = np.asarray(samples)
    except ValueError:  # lists within that differ in length
        raise MediaError(
            f"A sound is a {type(samples).__name__} of {len(samples)} that makes no array; allowed "
            "are samples [N], and a tuple of samples and their rate. Give all channels one length."
        ) from None
    return array.astype(np.float64) if array.dtype == np.int64 else array


def _lone(array: np.ndarray, rate: int) -> np.ndarray:
    """The same array, which came without a rate: more axes may be a batch as well as channels."""
    if array.ndim != 1:
        raise MediaError(
            f"A sound without a rate has samples of shape {array.shape}; allowed is [N], at the "
            f"model's {rate} Hz. Give a tuple of samples and rate."
        )
    return array


def _frames(array: np.ndarray) -> np.ndarray:
    """A view [N, channels]."""
    if array.dtype.str[1:] not in _INTEGERS and array.dtype.kind != "f":
        raise MediaError(
            f"A sound has samples of dtype {array.dtype}; allowed are uint8, int16, int32, and "
            "floats in -1..1. Convert them."
        )
    if array.ndim not in (1, 2):
        raise MediaError(
            f"A sound has samples of shape {array.shape}; allowed are [N], [N, channels] and "
            "[channels, N]. Leave out the batch."
        )
    if not array.size:
        raise _empty()
    if array.ndim == 1:
        return array[:, None]
    return array.T if array.shape[0] < array.shape[1] else array


def _scaled(frames: np.ndarray) -> Iterator[np.ndarray]:
    """Blocks of float32 [n, channels] of frames of any type that is allowed."""
    middle, amplitude = _INTEGERS.get(frames.dtype.str[1:], (0, 1))
    for start in range(0, len(frames), _BLOCK):
        with np.errstate(over="ignore"):  # infinity is refused later
            block = frames[start : start + _BLOCK].astype(np.float32)
        yield (block - np.float32(middle)) / np.float32(amplitude)


def _mono(
    blocks: Iterator[np.ndarray], given_rate: float, rate: int, max_seconds: float
) -> np.ndarray:
    """Float32 [N] at `rate` of blocks [n, channels] at `given_rate`."""
    resampler = None if given_rate == rate else soxr.ResampleStream(given_rate, rate, 1)
    parts, frames = [], 0
    for block in blocks:
        frames += len(block)
        _check_length(frames, given_rate, max_seconds)
        mixed = _mixed(block)
        parts.append(resampler.resample_chunk(mixed) if resampler else mixed)
    if resampler:
        parts.append(resampler.resample_chunk(np.empty(0, np.float32), last=True))
    if not any(map(len, parts)):
        raise _empty()
    return np.concatenate(parts)


def _mixed(block: np.ndarray) -> np.ndarray:
    """Float32 [n] of a block [n, channels]; raises MediaError where one is out of range."""
    with np.errstate(over="ignore", invalid="ignore"):
        mixed = functools.reduce(np.add, block.T) / np.float32(block.shape[1])
    level = float(np.abs(mixed).max())
    if not math.isfinite(level):
        raise MediaError(
            f"A sound has samples that are not finite ({level}); allowed are -1..1. Look for a "
            "division by zero where it was made."
        )
    if level > MAX_LEVEL:
        raise MediaError(
            f"A sound has samples as large as {level:g}; allowed are floats in -1..1. Divide those "
            "of 16 bits by 32768, or give an array of int16."
        )
    return mixed
