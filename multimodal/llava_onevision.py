"""Pictures and videos for LLaVA-OneVision (arXiv:2408.03326): squares for its tower."""

import dataclasses
import functools
import math
from collections.abc import Iterable
from typing import Any, Self

import numpy as np
from PIL import Image

from ..errors import ModelConfigError
from . import tiles
from .errors import MediaError
from .fields import HfConfig, count
from .pixels import Normalization, height_width, require, resampling
from .tiles import Size

_UNTILED: Size = (1, 0)
"""A grid of no tiles, and what is shown of it: one line of no features, and its end."""


@dataclasses.dataclass(frozen=True)
class Tiles:
    """A picture for the tower. Sizes are heights and widths."""

    pixels: np.ndarray
    """Float32 [1 + rows * columns, 3, side, side]: the whole, then the grid row by row."""
    grid: Size
    """Rows and columns."""
    kept: Size
    """Features in the middle of the grid, around which is padding."""
    shown: Size
    """What they are scaled to for the language model, which sees one more at each line's end."""


@dataclasses.dataclass(frozen=True)
class Frames:
    """A video for the tower; one feature more than those of its frames ends it."""

    pixels: np.ndarray
    """Float32 [T, 3, side, side]."""
    ends: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Squares:
    """Makes squares, whatever the aspect."""

    side: int
    """Pixels along an edge of a square."""
    along: int
    """Patches of the tower along it."""
    resample: Image.Resampling = Image.Resampling.BICUBIC
    normalize: Normalization = Normalization()

    @classmethod
    def _fields(cls, hf: HfConfig, side: int) -> dict[str, Any]:
        require(hf, "do_resize", True, True)
        require(hf, "do_center_crop", False, False)
        size = (side, side) if hf.get("size") is None else height_width(hf, "size")
        if size != (side, side):
            raise ModelConfigError(
                f"size is {size} in the model's preprocessor_config.json, but its tower takes "
                f"{(side, side)}, the image_size of vision_config. Correct the files."
            )
        normalize = Normalization.from_hf(hf)
        return {"side": side, "resample": resampling(hf, cls.resample), "normalize": normalize}

    def _pixels(self, images: Iterable[Image.Image]) -> np.ndarray:
        """Float32 [n, 3, side, side]."""
        edges = self.side, self.side
        return np.stack([self.normalize(image.resize(edges, self.resample)) for image in images])


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlavaOnevisionImages(_Squares):
    """Prepares pictures: the whole, and tiles of a larger version."""

    pinpoints: tuple[Size, ...]
    """Heights and widths in pixels of which the larger version has one."""
    max_squares: int = 9
    """A grid of clearly more features than so many squares have is scaled down to about that."""
    tiled: bool = True
    """Otherwise a picture is one square, padded, as the model was trained with for several."""

    @classmethod
    def from_hf(
        cls,
        hf: HfConfig,
        *,
        side: int,
        along: int,
        pinpoints: tuple[Size, ...],
        max_squares: int,
    ) -> Self:
        """From `preprocessor_config.json`, and what the model's config.json says.

        Args:
            side: `image_size` of `vision_config`.
            along: patches along it.
            pinpoints: `image_grid_pinpoints`; those of the file must be the same.
            max_squares: N of `vision_aspect_ratio`, "anyres_max_N".

        Raises:
            ModelConfigError: a field is malformed, or not as in config.json.
            UnsupportedModelError: a step of another processor is switched on.
        """
        given = hf.get("image_grid_pinpoints")
        expected = [list(size) for size in pinpoints]
        if given is not None and given != expected:
            raise ModelConfigError(
                "The field 'image_grid_pinpoints' in the model's preprocessor_config.json is "
                f"{given}, and in its config.json {expected}; they must be the same. Correct the "
                "files."
            )
        fields = cls._fields(hf, side)
        return cls(along=along, pinpoints=pinpoints, max_squares=max_squares, **fields)

    @property
    def max_tokens(self) -> int:
        """No picture has more."""
        return self.along**2 + _most_shown(self)

    def num_tokens(self, width: int, height: int) -> int:
        """Placeholder tokens of a picture of a size, however thin it is.

        Those of the whole, of the grid without its padding, and one at the end of each line.
        """
        if not self.tiled:
            return self.along**2 + 1
        rows, columns = self._shown(self._kept(self._size(width, height), width, height))
        return self.along**2 + rows * (columns + 1)

    def __call__(self, image: Image.Image) -> Tiles:
        """Of an RGB picture."""
        if not self.tiled:
            color = tuple(int(mean * 255) for mean in self.normalize.mean)
            pixels = self._pixels([tiles.padded_to_square(image, color)])
            return Tiles(pixels, _UNTILED, _UNTILED, _UNTILED)
        size = self._size(*image.size)
        kept = self._kept(size, *image.size)
        pixels = self._pixels([image, *tiles.cut(image, size, self.side, self.resample)])
        return Tiles(pixels, self._grid(size), kept, self._shown(kept))

    def _size(self, width: int, height: int) -> Size:
        """Of the larger version in pixels."""
        return tiles.best_size(height, width, self.pinpoints)

    def _grid(self, size: Size) -> Size:
        return size[0] // self.side, size[1] // self.side

    def _features(self, size: Size) -> Size:
        rows, columns = self._grid(size)
        return rows * self.along, columns * self.along

    def _kept(self, size: Size, width: int, height: int) -> Size:
        """Features that a picture of a width and height covers of the larger version."""
        return tiles.unpadded(height, width, self._features(size))

    def _shown(self, kept: Size) -> Size:
        return tiles.bounded(kept, self.max_squares * self.along**2)


@functools.lru_cache(maxsize=8)
def _most_shown(images: LlavaOnevisionImages) -> int:
    """Features and ends of lines of the grid that shows most, whatever of it is padding."""
    covers = {
        cover
        for rows, columns in map(images._features, images.pinpoints)
        for cover in (
            *((kept, columns) for kept in range(rows + 1)),
            *((rows, kept) for kept in range(columns)),
        )
    }
    return max(rows * (columns + 1) for rows, columns in map(images._shown, covers))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlavaOnevisionVideos(_Squares):
    """Prepares videos, each of whose frames is one square."""

    max_frames: int = 768
    """Of a video."""
    num_frames: int | None = None
    fps: float | None = None
    """How frames are taken from a file, as `videos.to_frames` does it."""

    @classmethod
    def from_hf(cls, hf: HfConfig, *, side: int, along: int) -> Self:
        """From the processor's file, and `image_size` of `vision_config` and patches along it.

        Raises ModelConfigError and UnsupportedModelError.
        """
        most = count(hf, "max_frames", cls.max_frames)
        return cls(along=along, max_frames=most, **cls._fields(hf, side))

    @property
    def max_tokens(self) -> int:
        """No video has more."""
        return self.max_frames * self._frame_tokens + 1

    @property
    def max_part_tokens(self) -> int:
        """No frame has more; the tower sees each by itself."""
        return self._frame_tokens + 1

    @property
    def _frame_tokens(self) -> int:
        """At half the tower's resolution."""
        return math.ceil(self.along / 2) ** 2

    def num_tokens(self, frames: int, width: int, height: int) -> int:
        """Placeholder tokens of a video of a size, one of which ends it.

        Raises MediaError for one of no frames or of too many.
        """
        if not 1 <= frames <= self.max_frames:
            raise MediaError(
                f"A video has {frames} frames; it may have 1 to {self.max_frames}, its "
                "processor's max_frames. Send fewer, or set num_frames."
            )
        return frames * self._frame_tokens + 1

    def __call__(self, frames: np.ndarray) -> Frames:
        """Of RGB frames, uint8 [T, H, W, 3]; raises MediaError as `num_tokens` does."""
        number, height, width, _ = frames.shape
        self.num_tokens(number, width, height)
        return Frames(self._pixels(Image.fromarray(frame) for frame in frames))
