"""Sounds for towers of Whisper: the logarithm of energies in bands of the mel scale."""

import dataclasses
import functools
from typing import Self

import numpy as np
from scipy.sparse import csr_array

from ..errors import UnsupportedModelError
from .errors import MediaError
from .fields import HfConfig, count

_HIGHEST = 8000.0
"""Hz, where the last band ends."""
_FLOOR = 1e-10
"""Energy, so that silence has a logarithm."""
_RANGE = 8.0
"""Decades below the loudest value that are told apart."""
_LINEAR_HERTZ, _LINEAR_MELS = 1000.0, 15.0
"""Up to here mels are in proportion to frequency, above to its logarithm."""
_MELS_OF_LOG = 27 / np.log(6.4)


@dataclasses.dataclass(frozen=True)
class Spectrogram:
    """A sound as a tower takes it."""

    mels: np.ndarray
    """Float32 [M, T], silence behind the sound."""
    frames: int
    """How many of the T begin within the sound."""

    @property
    def mask(self) -> np.ndarray:
        """Bool [T]: which frames begin within the sound."""
        return np.arange(self.mels.shape[1]) < self.frames


@dataclasses.dataclass(frozen=True)
class LogMel:
    """Log-mel spectrograms as Whisper's (arXiv:2212.04356), padded or cut to one length."""

    bins: int = 80
    """M: bands of the mel scale."""
    sampling_rate: int = 16000
    """Samples a second."""
    window: int = 400
    """Samples of the Fourier transform."""
    hop: int = 160
    """Samples from frame to frame."""
    max_length: int = 480000
    """Samples that a sound is padded or cut to."""

    @classmethod
    def from_hf(cls, hf: HfConfig, max_length: int | None = None) -> Self:
        """From `preprocessor_config.json`.

        Args:
            max_length: samples, instead of the file's `chunk_length`, which is in seconds.

        Raises:
            ModelConfigError: a field is malformed.
            UnsupportedModelError: the file is of another kind, or asks for another step.
        """
        _require(hf, "feature_extractor_type", "WhisperFeatureExtractor")
        _require(hf, "padding_side", "right")
        _require(hf, "padding_value", 0.0)
        _require(hf, "dither", 0.0)
        _require(hf, "do_normalize", False)
        rate = count(hf, "sampling_rate", cls.sampling_rate)
        return cls(
            bins=count(hf, "feature_size", cls.bins),
            sampling_rate=rate,
            window=count(hf, "n_fft", cls.window),
            hop=count(hf, "hop_length", cls.hop),
            max_length=max_length or count(hf, "chunk_length", 30) * rate,
        )

    @property
    def max_frames(self) -> int:
        """T, of every sound."""
        return self.max_length // self.hop

    def num_frames(self, samples: int) -> int:
        """Frames of a sound that begin within it.

        Raises:
            MediaError: it has no samples.
        """
        if samples < 1:
            raise MediaError("A sound has no samples; it must have at least one. Leave it out.")
        return min(-(-samples // self.hop), self.max_frames)

    def __call__(self, samples: np.ndarray) -> Spectrogram:
        """The spectrogram of mono samples [N] from -1 to 1; what is after `max_length` is cut off.

        Raises:
            MediaError: the sound has no samples, or they are not of one channel.
        """
        if samples.ndim != 1:
            raise MediaError(
                f"A sound has samples of shape {list(samples.shape)}; they must be of one channel, "
                "[N]. Mix the channels first."
            )
        frames = self.num_frames(len(samples))
        padded = np.zeros(
            min(len(samples) // self.hop * self.hop + 2 * self.window, self.max_length)
        )
        padded[: len(samples)] = samples[: self.max_length]
        energies = self._energies(padded)  # behind them is silence
        heard = np.log10(np.maximum(energies, _FLOOR))
        mels = np.full((self.bins, self.max_frames), np.log10(_FLOOR))
        mels[:, : heard.shape[1]] = heard
        mels = np.maximum(mels, mels.max() - _RANGE)
        return Spectrogram(((mels + 4.0) / 4.0).astype(np.float32), frames)

    def _energies(self, samples: np.ndarray) -> np.ndarray:
        """Float64 [M, frames] of samples; frames are centred on multiples of the hop."""
        mirrored = np.pad(samples, self.window // 2, mode="reflect")
        frames = np.lib.stride_tricks.sliding_window_view(mirrored, self.window)[:: self.hop]
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.window) / self.window)
        spectrum = np.fft.rfft(frames[: self.max_frames] * hann)
        filters = mel_filters(self.bins, self.window // 2 + 1, self.sampling_rate)
        return filters @ (spectrum.real**2 + spectrum.imag**2).T


@functools.cache
def mel_filters(bins: int, frequencies: int, sampling_rate: int) -> csr_array:
    """Float64 [bins, frequencies]: triangles of unit area over the spectrum, even on Slaney's mel
    scale (Auditory Toolbox, 1998) from 0 to 8000 Hz. Sparse: a frequency is in two of them at most,
    and a dense product would take every core, beside the others that work on media."""
    corners = _hertz(np.linspace(0.0, _mels(_HIGHEST), bins + 2))
    low, peak, high = (corners[i : i + bins, None] for i in range(3))
    hertz = np.linspace(0, sampling_rate // 2, frequencies)
    rising, falling = (hertz - low) / (peak - low), (high - hertz) / (high - peak)
    return csr_array(np.maximum(0.0, np.minimum(rising, falling)) * 2.0 / (high - low))


def _mels(hertz: float) -> float:
    """Of a frequency above the linear part."""
    return _LINEAR_MELS + _MELS_OF_LOG * np.log(hertz / _LINEAR_HERTZ)


def _hertz(mels: np.ndarray) -> np.ndarray:
    above = _LINEAR_HERTZ * np.exp((mels - _LINEAR_MELS) / _MELS_OF_LOG)
    return np.where(mels < _LINEAR_MELS, mels * _LINEAR_HERTZ / _LINEAR_MELS, above)


def _require(hf: HfConfig, name: str, expected: object) -> None:
    if (given := hf.get(name)) is not None and given != expected:
        raise UnsupportedModelError(
            f"The model's preprocessor_config.json has {name!r} {given!r}; only {expected!r} is "
            "implemented. Use a model whose sounds are processed so."
        )
