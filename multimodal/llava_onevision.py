"""Pictures and videos for LLaVA-OneVision (arXiv:2408.03326): squares for its tower."""

import dataclasses
import math
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image

from ..errors import ModelConfigError
from . import tiles
from .fields import HfConfig, count
from .frames import FrameCounts
from .pixels import Normalization, height_width, require, resampling
from .tiles import Size, Squares, TiledImages, Tiles

_UNTILED: Size = (1, 0)
"""A grid of no tiles, and what is shown of it: one line of no features, and its end."""


@dataclasses.dataclass(frozen=True)
class Frames:
    """A video for the tower; one feature more than those of its frames ends it."""

    pixels: np.ndarray
    """Float32 [T, 3, side, side]."""
    ends: bool = True


def _fields(hf: HfConfig, side: int) -> dict[str, Any]:
    """Of `Squares`."""
    require(hf, "do_resize", True, True)
    require(hf, "do_center_crop", False, False)
    size = (side, side) if hf.get("size") is None else height_width(hf, "size")
    if size != (side, side):
        raise ModelConfigError(
            f"size is {size} in the model's preprocessor_config.json, but its tower takes "
            f"{(side, side)}, the image_size of vision_config. Correct the files."
        )
    normalize = Normalization.from_hf(hf)
    return {"side": side, "resample": resampling(hf, Squares.resample), "normalize": normalize}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlavaOnevisionImages(TiledImages):
    """Prepares pictures: the whole, and tiles of a larger version."""

    max_squares: int = 9
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
        tiles.check_pinpoints(hf, pinpoints)
        fields = _fields(hf, side)
        return cls(along=along, pinpoints=pinpoints, max_squares=max_squares, **fields)

    def in_chat(self, number: int) -> Self:
        """For a picture that is one of `number` in a conversation."""
        return self if number == 1 else dataclasses.replace(self, tiled=False)

    def num_tokens(self, width: int, height: int) -> int:
        """Placeholder tokens of a picture of a size, however thin it is."""
        return super().num_tokens(width, height) if self.tiled else self.along**2 + 1

    def __call__(self, image: Image.Image) -> Tiles:
        """Of an RGB picture."""
        if self.tiled:
            return super().__call__(image)
        color = tuple(int(mean * 255) for mean in self.normalize.mean)
        pixels = self._pixels([tiles.padded_to_square(image, color)])
        return Tiles(pixels, _UNTILED, _UNTILED, _UNTILED)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlavaOnevisionVideos(Squares, FrameCounts):
    """Prepares videos, each of whose frames is one square."""

    ending: ClassVar[int] = 1

    @classmethod
    def from_hf(cls, hf: HfConfig, *, side: int, along: int) -> Self:
        """From the processor's file, and `image_size` of `vision_config` and patches along it.

        Raises ModelConfigError and UnsupportedModelError.
        """
        most = count(hf, "max_frames", cls.max_frames)
        return cls(along=along, max_frames=most, **_fields(hf, side))

    @property
    def frame_tokens(self) -> int:
        """At half the tower's resolution."""
        return math.ceil(self.along / 2) ** 2

    def __call__(self, frames: np.ndarray) -> Frames:
        """Of RGB frames, uint8 [T, H, W, 3]; raises MediaError as `num_tokens` does."""
        number, height, width, _ = frames.shape
        self.num_tokens(number, width, height)
        return Frames(self._pixels(Image.fromarray(frame) for frame in frames))
