"""Pictures for LLaVA-NeXT, in tiles, and videos for LLaVA-NeXT-Video, whose frames are cut as
pictures for CLIP."""

import dataclasses
from typing import Self

import numpy as np
from PIL import Image

from ..errors import ModelConfigError
from . import tiles
from .clip import ClipImages
from .fields import HfConfig, count
from .frames import FrameCounts
from .tiles import Size, TiledImages


@dataclasses.dataclass(frozen=True)
class Frames:
    """A video for the tower."""

    pixels: np.ndarray
    """Float32 [T, 3, side, side]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlavaNextImages(TiledImages):
    """Prepares pictures: the whole, and tiles of a larger version."""

    @classmethod
    def from_hf(
        cls, hf: HfConfig, *, side: int, patch_size: int, pinpoints: tuple[Size, ...]
    ) -> Self:
        """From `preprocessor_config.json`, and what the model's config.json says.

        Args:
            side: `image_size` of `vision_config`.
            patch_size: of `vision_config`.
            pinpoints: `image_grid_pinpoints`; those of the file must be the same.

        Raises:
            ModelConfigError: a field is malformed, or not as in config.json.
            UnsupportedModelError: a step of another processor is switched on.
        """
        tiles.check_pinpoints(hf, pinpoints)
        clip = _clip(hf, side, patch_size)
        if clip.resize not in (side, (side, side)):
            raise ModelConfigError(
                f"size is {clip.resize} in the model's preprocessor_config.json, but its tower "
                f"takes {side}, the image_size of vision_config. Correct the files."
            )
        return cls(
            side=side,
            along=side // patch_size,
            pinpoints=pinpoints,
            resample=clip.resample,
            normalize=clip.normalize,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlavaNextVideos(FrameCounts):
    """Prepares videos, the middle of each of whose frames is one square."""

    clip: ClipImages
    """How frames are cut."""
    along: int
    """Features along an edge of a frame."""

    @classmethod
    def from_hf(cls, hf: HfConfig, *, side: int, patch_size: int, stride: int) -> Self:
        """From the processor's file, and what the model's config.json says.

        Args:
            side: `image_size` of `vision_config`.
            patch_size: of `vision_config`.
            stride: `spatial_pool_stride`.

        Raises:
            ModelConfigError: a field is malformed, or not as in config.json.
            UnsupportedModelError: a step of another processor is switched on.
        """
        most = count(hf, "max_frames", cls.max_frames)
        clip = _clip(hf, side, patch_size)
        return cls(clip=clip, along=side // patch_size // stride, max_frames=most)

    @property
    def frame_tokens(self) -> int:
        """Of what the tower's features are pooled into."""
        return self.along**2

    def num_tokens(self, frames: int, width: int, height: int) -> int:
        """Placeholder tokens of a video of a size.

        Raises MediaError for one of no frames, of too many, or of frames that are too thin.
        """
        self.clip.num_tokens(width, height)
        return super().num_tokens(frames, width, height)

    def __call__(self, frames: np.ndarray) -> Frames:
        """Of RGB frames, uint8 [T, H, W, 3]; raises MediaError as `num_tokens` does."""
        number, height, width, _ = frames.shape
        self.num_tokens(number, width, height)
        return Frames(np.stack([self.clip(Image.fromarray(frame)) for frame in frames]))


def _clip(hf: HfConfig, side: int, patch_size: int) -> ClipImages:
    """What the file says of squares; pictures of a batch are padded by none, whatever it says."""
    clip = ClipImages.from_hf({**hf, "do_pad": False}, patch_size=patch_size)
    clip.check_side(side)
    return clip
