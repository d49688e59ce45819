"""Videos whose frames all have as many features: how many that are, and how long they may be."""

import abc
import dataclasses
from typing import ClassVar

from .errors import MediaError


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameCounts(abc.ABC):
    """What processors of such videos have, and how they tell their tokens."""

    max_frames: int = 768
    """Of a video."""
    num_frames: int | None = None
    fps: float | None = None
    """How frames are taken from a file, as `videos.to_frames` does it."""

    ending: ClassVar[int] = 0
    """Features behind those of the last frame."""

    @property
    @abc.abstractmethod
    def frame_tokens(self) -> int:
        """Features of a frame."""

    @property
    def max_tokens(self) -> int:
        """No video has more."""
        return self.max_frames * self.frame_tokens + self.ending

    @property
    def max_part_tokens(self) -> int:
        """No frame has more; the tower sees each by itself."""
        return self.frame_tokens + self.ending

    def num_tokens(self, frames: int, width: int, height: int) -> int:
        """Placeholder tokens of a video of a size.

        Raises MediaError for one of no frames or of too many.
        """
        if not 1 <= frames <= self.max_frames:
            raise MediaError(
                f"A video has {frames} frames; it may have 1 to {self.max_frames}, its "
                "processor's max_frames. Send fewer, or set num_frames."
            )
        return frames * self.frame_tokens + self.ending
