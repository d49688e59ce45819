"""Pictures for Qwen2-VL: nearly their own size, as patches in the order of their merging."""

import dataclasses
import math
from typing import Self

import numpy as np
from PIL import Image

from ..errors import ModelConfigError
from .errors import MediaError
from .fields import HfConfig, count
from .pixels import Normalization, require, resampling

MAX_ASPECT = 200


@dataclasses.dataclass(frozen=True)
class Patches:
    """A picture for the tower; the language model gets `num_tokens` features for it."""

    patches: np.ndarray
    """Float32 [N, 3 * frames * patch * patch]: merge x merge neighbours follow one another."""
    grid: tuple[int, int, int]
    """Patches along time, height and width; N is their product."""
    num_tokens: int


@dataclasses.dataclass(frozen=True)
class Qwen2VLImages:
    """Resizes to multiples of patch * merge with an area between two bounds, and cuts patches."""

    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    patch: int = 14
    merge: int = 2
    """Patches along an edge of the square that becomes one token."""
    frames: int = 2
    """Of a patch; a still picture is repeated so often."""
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
        """From `preprocessor_config.json`, old (`min_pixels`) or new (`size.shortest_edge`).

        Raises ModelConfigError and UnsupportedModelError.
        """
        require(hf, "do_resize", True, True)
        size = hf.get("size") or {}
        lower = count(size, "shortest_edge", cls.min_pixels)
        upper = count(size, "longest_edge", cls.max_pixels)
        return cls(
            min_pixels=count(hf, "min_pixels", lower),
            max_pixels=count(hf, "max_pixels", upper),
            patch=count(hf, "patch_size", cls.patch),
            merge=count(hf, "merge_size", cls.merge),
            frames=count(hf, "temporal_patch_size", cls.frames),
            resample=resampling(hf, cls.resample),
            normalize=Normalization.from_hf(hf),
        )

    @property
    def max_tokens(self) -> int:
        """No picture has more. It may be above `max_pixels`: thin pictures keep one token across,
        and where one is enlarged both edges are rounded up.
        """
        unit, thin = self.patch * self.merge, math.sqrt(MAX_ASPECT)
        lower, upper = math.sqrt(self.min_pixels) / unit, math.sqrt(self.max_pixels) / unit
        enlarged = lower**2 + lower * (thin + 1 / thin) + 1
        return int(max(self.max_pixels // unit**2, upper * thin, enlarged))

    def grid(self, width: int, height: int) -> tuple[int, int, int]:
        """Patches along time, height and width for a picture of a size; raises MediaError."""
        height, width = self._resized(height, width)
        return 1, height // self.patch, width // self.patch

    def token_grid(self, width: int, height: int) -> tuple[int, int, int]:
        """Features along time, height and width; raises MediaError for one too thin."""
        frames, rows, columns = self.grid(width, height)
        return frames, rows // self.merge, columns // self.merge

    def num_tokens(self, width: int, height: int) -> int:
        """Placeholder tokens of a picture of a size; raises MediaError for one too thin."""
        return math.prod(self.token_grid(width, height))

    def __call__(self, image: Image.Image) -> Patches:
        """Of an RGB picture; raises MediaError for one that is too thin."""
        height, width = self._resized(image.height, image.width)
        pixels = self.normalize(image.resize((width, height), self.resample))
        _, rows, columns = grid = (1, height // self.patch, width // self.patch)
        cut = pixels.reshape(
            *(3, rows // self.merge, self.merge, self.patch),
            *(columns // self.merge, self.merge, self.patch),
        ).transpose(1, 4, 2, 5, 0, 3, 6)  # [row, column, row inside, column inside, 3, P, P]
        repeated = np.repeat(cut[:, :, :, :, :, None], self.frames, axis=5)
        patches = repeated.reshape(rows * columns, 3 * self.frames * self.patch**2)
        return Patches(patches, grid, rows * columns // self.merge**2)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width to scale to: the nearest multiples, if their area is in bounds."""
        if max(height, width) > MAX_ASPECT * min(height, width):
            raise MediaError(
                f"A picture is {width}x{height} pixels; its long side may be at most {MAX_ASPECT} "
                "times its short side. Cut or pad it."
            )
        unit = self.patch * self.merge
        nearest = round(height / unit) * unit, round(width / unit) * unit
        if math.prod(nearest) > self.max_pixels:
            shrink = math.sqrt(height * width / self.max_pixels)
            edges = (math.floor(edge / shrink / unit) * unit for edge in (height, width))
            rows, columns = (max(unit, edge) for edge in edges)
        elif math.prod(nearest) < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            rows, columns = (math.ceil(edge * grow / unit) * unit for edge in (height, width))
        else:
            rows, columns = nearest
        return rows, columns
