"""Pictures and videos for Qwen2-VL: nearly their own size, as patches in the order of merging."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from PIL import Image

from ..errors import ModelConfigError
from .errors import MediaError
from .fields import HfConfig, count
from .pixels import Normalization, require, resampling

MAX_ASPECT = 200
_MAX_VIDEO_TOKENS = 128_000
_SHARE_OF_VIDEO = 0.9
"""Of a context of so many tokens a video may fill so much, where its frames share one budget."""
_ABOVE_LEAST = 1.05
"""Their bound stays above `min_pixels` by so much."""


@dataclasses.dataclass(frozen=True)
class Patches:
    """A picture or video for the tower; the language model gets `num_tokens` features for it.

    The device normalizes: it takes pixels of one byte in a quarter of the time.
    """

    patches: np.ndarray
    """uint8 [N, 3 * frames * patch * patch]: merge x merge neighbours follow one another."""
    factors: np.ndarray
    """Float32 [3]: what a pixel is multiplied by, for each channel, before `terms` are added."""
    terms: np.ndarray
    """Float32 [3]."""
    grid: tuple[int, int, int]
    """Patches along time, height and width; N is their product."""
    num_tokens: int


@dataclasses.dataclass(frozen=True)
class _Qwen2VLFrames:
    """Resizes to multiples of patch * merge with an area between two bounds, and cuts patches."""

    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    patch: int = 14
    merge: int = 2
    """Patches along an edge of the square that becomes one token."""
    frames: int = 2
    """Of a patch; a still picture, and a video's last frame, is repeated to fill it."""
    resample: Image.Resampling = Image.Resampling.BICUBIC
    normalize: Normalization = Normalization()

    def __post_init__(self) -> None:
        unit = (self.patch * self.merge) ** 2
        if not unit <= self.max_pixels or not 1 <= self.min_pixels <= self.max_pixels:
            raise ModelConfigError(
                f"min_pixels is {self.min_pixels} and max_pixels {self.max_pixels}; they must be "
                f"in order, and the latter at least {unit}, one token. Correct them."
            )

    @classmethod
    def from_hf(cls, hf: HfConfig) -> Self:
        """From the processor's file, old (`min_pixels`) or new (`size.shortest_edge`).

        Raises ModelConfigError and UnsupportedModelError.
        """
        return cls(**cls._fields(hf))

    @classmethod
    def _fields(cls, hf: HfConfig) -> dict[str, Any]:
        require(hf, "do_resize", True, True)
        size = hf.get("size") or {}
        lower = count(size, "shortest_edge", cls.min_pixels)
        upper = count(size, "longest_edge", cls.max_pixels)
        return {
            "min_pixels": count(hf, "min_pixels", lower),
            "max_pixels": count(hf, "max_pixels", upper),
            "patch": count(hf, "patch_size", cls.patch),
            "merge": count(hf, "merge_size", cls.merge),
            "frames": count(hf, "temporal_patch_size", cls.frames),
            "resample": resampling(hf, cls.resample),
            "normalize": Normalization.from_hf(hf),
        }

    def _most_tokens(self, max_pixels: int) -> int:
        """No frame has more. It may be above `max_pixels`: thin ones keep one token across, and
        where one is enlarged both edges are rounded up.
        """
        unit, thin = self.patch * self.merge, math.sqrt(MAX_ASPECT)
        lower, upper = math.sqrt(self.min_pixels) / unit, math.sqrt(max_pixels) / unit
        enlarged = lower**2 + lower * (thin + 1 / thin) + 1
        return int(max(max_pixels // unit**2, upper * thin, enlarged))

    def _grid(self, time: int, width: int, height: int, max_pixels: int) -> tuple[int, int, int]:
        """Patches along time, height and width for frames of a size; raises MediaError."""
        height, width = self._resized(height, width, max_pixels)
        return time, height // self.patch, width // self.patch

    def _merged(self, grid: tuple[int, int, int]) -> tuple[int, int, int]:
        """Features along time, height and width for a grid of patches."""
        time, rows, columns = grid
        return time, rows // self.merge, columns // self.merge

    def _resized(self, height: int, width: int, max_pixels: int) -> tuple[int, int]:
        """Height and width to scale to: the nearest multiples, if their area is in bounds."""
        if max(height, width) > MAX_ASPECT * min(height, width):
            raise MediaError(
                f"A picture is {width}x{height} pixels; its long side may be at most {MAX_ASPECT} "
                "times its short side. Cut or pad it."
            )
        unit = self.patch * self.merge
        nearest = round(height / unit) * unit, round(width / unit) * unit
        if math.prod(nearest) > max_pixels:
            shrink = math.sqrt(height * width / max_pixels)
            edges = (math.floor(edge / shrink / unit) * unit for edge in (height, width))
            rows, columns = (max(unit, edge) for edge in edges)
        elif math.prod(nearest) < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            rows, columns = (math.ceil(edge * grow / unit) * unit for edge in (height, width))
        else:
            rows, columns = nearest
        return rows, columns

    def _patches(self, frames: Sequence[Image.Image], grid: tuple[int, int, int]) -> Patches:
        """Of RGB frames of one size, the last of which fills what is left of its patches."""
        time, rows, columns = grid
        squares = rows // self.merge, columns // self.merge, self.merge, self.merge
        out = np.empty((time, *squares, 3, self.frames, self.patch, self.patch), np.uint8)
        for i, frame in enumerate(frames):
            group, place = divmod(i, self.frames)
            places = slice(place, place + 1 if i + 1 < len(frames) else None)
            out[group, ..., places, :, :] = self._squares(frame, rows, columns)[..., None, :, :]
        patches = out.reshape(math.prod(grid), 3 * self.frames * self.patch**2)
        tokens = math.prod(self._merged(grid))
        return Patches(patches, self.normalize.factors, self.normalize.terms, grid, tokens)

    def _squares(self, frame: Image.Image, rows: int, columns: int) -> np.ndarray:
        """One frame as uint8 [row, column, row inside, column inside, 3, patch, patch]."""
        resized = frame.resize((columns * self.patch, rows * self.patch), self.resample)
        cut = np.asarray(resized).reshape(
            *(rows // self.merge, self.merge, self.patch),
            *(columns // self.merge, self.merge, self.patch),
            3,
        )
        return cut.transpose(0, 3, 1, 4, 6, 2, 5)


@dataclasses.dataclass(frozen=True)
class Qwen2VLImages(_Qwen2VLFrames):
    """Prepares pictures."""

    @property
    def max_tokens(self) -> int:
        """No picture has more."""
        return self._most_tokens(self.max_pixels)

    def grid(self, width: int, height: int) -> tuple[int, int, int]:
        """Patches along time, height and width for a picture of a size; raises MediaError."""
        return self._grid(1, width, height, self.max_pixels)

    def token_grid(self, width: int, height: int) -> tuple[int, int, int]:
        """Features along time, height and width; raises MediaError for one too thin."""
        return self._merged(self.grid(width, height))

    def num_tokens(self, width: int, height: int) -> int:
        """Placeholder tokens of a picture of a size; raises MediaError for one too thin."""
        return math.prod(self.token_grid(width, height))

    def __call__(self, image: Image.Image) -> Patches:
        """Of an RGB picture; raises MediaError for one that is too thin."""
        return self._patches([image], self.grid(*image.size))


@dataclasses.dataclass(frozen=True)
class Qwen2VLVideos(_Qwen2VLFrames):
    """Prepares videos, whose frames are resized alike. The bounds on pixels are for a frame."""

    min_pixels: int = 28 * 28 * 128
    max_pixels: int = 28 * 28 * 768
    max_frames: int = 768
    """Of a video."""
    num_frames: int | None = None
    fps: float | None = None
    """How frames are taken from a file, as `videos.to_frames` does it."""
    total_pixels: int | None = None
    """Bounds the pixels of all frames, those of one patch counted once, so that frames of long
    videos are smaller; but no frame is made smaller for it than a little above `min_pixels`.
    """

    @classmethod
    def _fields(cls, hf: HfConfig) -> dict[str, Any]:
        fields = super()._fields(hf)
        fields["max_frames"] = count(hf, "max_frames", cls.max_frames)
        if hf.get("cap_pixels_per_frame"):
            tokens = count(hf, "max_video_tokens", _MAX_VIDEO_TOKENS)
            unit = fields["patch"] * fields["merge"]
            fields["total_pixels"] = int(tokens * unit**2 * _SHARE_OF_VIDEO)
        return fields

    @property
    def max_tokens(self) -> int:
        """No video has more."""
        fewest = range(1, self.max_frames + 1, self.frames)  # frames for 1, 2, ... along time
        return max(
            time * self._most_tokens(self._most_pixels(frames))
            for time, frames in enumerate(fewest, 1)
        )

    @property
    def max_part_tokens(self) -> int:
        """No frames that share patches have more; the tower sees each such group by itself."""
        return self._most_tokens(self._most_pixels(1))

    def grid(self, frames: int, width: int, height: int) -> tuple[int, int, int]:
        """Patches along time, height and width for a video of a size.

        Raises MediaError for one of no frames, of too many, or of too thin ones.
        """
        if not 1 <= frames <= self.max_frames:
            raise MediaError(
                f"A video has {frames} frames; it may have 1 to {self.max_frames}, its "
                "processor's max_frames. Send fewer, or set num_frames."
            )
        time = -(-frames // self.frames)
        return self._grid(time, width, height, self._most_pixels(frames))

    def token_grid(self, frames: int, width: int, height: int) -> tuple[int, int, int]:
        """Features along time, height and width; raises MediaError as `grid` does."""
        return self._merged(self.grid(frames, width, height))

    def num_tokens(self, frames: int, width: int, height: int) -> int:
        """Placeholder tokens of a video of a size; raises MediaError as `grid` does."""
        return math.prod(self.token_grid(frames, width, height))

    def __call__(self, frames: np.ndarray) -> Patches:
        """Of RGB frames, uint8 [T, H, W, 3]; raises MediaError as `grid` does."""
        number, height, width, _ = frames.shape
        grid = self.grid(number, width, height)
        return self._patches([Image.fromarray(frame) for frame in frames], grid)

    def _most_pixels(self, frames: int) -> int:
        """Of a frame, in a video of so many."""
        if self.total_pixels is None:
            return self.max_pixels
        share = self.total_pixels * self.frames // frames
        return max(min(self.max_pixels, share), int(self.min_pixels * _ABOVE_LEAST))
