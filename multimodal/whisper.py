"""Sounds for models that hear through a tower of Whisper."""

import dataclasses
from typing import Protocol

import numpy as np

from .errors import MediaError
from .log_mel import LogMel, Spectrogram


class Tower(Protocol):
    """What is known of the model's tower. A frozen dataclass."""

    def rows(self, frames: int) -> int:
        """Features of a sound of so many mel frames."""
        ...


@dataclasses.dataclass(frozen=True)
class WhisperSounds:
    """Prepares mono samples; what is longer than the tower takes is cut."""

    log_mel: LogMel
    tower: Tower

    @property
    def sampling_rate(self) -> int:
        """Samples a second."""
        return self.log_mel.sampling_rate

    @property
    def max_tokens(self) -> int:
        """No sound has more placeholder tokens."""
        return self.tower.rows(self.log_mel.max_frames)

    def num_tokens(self, samples: int) -> int:
        """Placeholder tokens of a sound; raises MediaError for one that is too short for any."""
        if (tokens := self.tower.rows(self.log_mel.num_frames(samples))) < 1:
            raise MediaError(
                f"A sound has {samples} samples at {self.sampling_rate} Hz, which is too short for "
                "the model to hear anything. Send a longer one, or put silence behind it."
            )
        return tokens

    def __call__(self, samples: np.ndarray) -> Spectrogram:
        """What the tower takes for samples [N]."""
        return self.log_mel(samples)
