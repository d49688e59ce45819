"""Sounds for Ultravox, whose spectrograms are as long as they are."""

import dataclasses
from typing import Protocol

import numpy as np

from .log_mel import LogMel, Spectrogram
from .sounds import MAX_SECONDS

_LEAST_FRAMES = 2
"""That a sound has, with silence behind it."""


class Tower(Protocol):
    """What is known of the model. A frozen dataclass."""

    @property
    def piece_rows(self) -> int:
        """Most features of a piece of a sound."""
        ...

    def rows(self, frames: int) -> int:
        """Features of a sound of so many mel frames."""
        ...


@dataclasses.dataclass(frozen=True)
class UltravoxSounds:
    """Prepares mono samples, with silence behind them up to whole frames; what is longer than the
    tower takes is heard in pieces."""

    log_mel: LogMel
    """Whose `max_length` is each sound's own."""
    tower: Tower

    @property
    def sampling_rate(self) -> int:
        """Samples a second."""
        return self.log_mel.sampling_rate

    @property
    def max_tokens(self) -> int:
        """No sound has more placeholder tokens."""
        return self.num_tokens(int(MAX_SECONDS * self.sampling_rate))

    @property
    def max_part_tokens(self) -> int:
        """No piece of a sound has more."""
        return self.tower.piece_rows

    def num_tokens(self, samples: int) -> int:
        """Placeholder tokens of a sound; raises MediaError for one without samples."""
        self.log_mel.num_frames(samples)
        return self.tower.rows(self._frames(samples))

    def __call__(self, samples: np.ndarray) -> Spectrogram:
        """What the encoder takes for samples [N]."""
        length = self._frames(len(samples)) * self.log_mel.hop
        padded = np.pad(samples, (0, length - len(samples)))
        return dataclasses.replace(self.log_mel, max_length=length)(padded)

    def _frames(self, samples: int) -> int:
        return max(-(-samples // self.log_mel.hop), _LEAST_FRAMES)
