"""Pictures for Phi-3-vision and Phi-3.5-vision: squares of a large version and one of the whole.

The picture is scaled to as many squares across as `num_crops` squares allow, and padded with white
above and below to whole squares. The tower sees each square, and the whole scaled to one square.
"""

import dataclasses
import math
from typing import Self

import numpy as np
from PIL import Image

from .errors import MediaError
from .fields import HfConfig, count
from .pixels import Normalization

SIDE = 336
TOKENS_ALONG = 12
"""Features of a square along an edge, after 2x2 neighbours of the tower's 24 x 24 are joined."""
_CUBIC = -0.75
"""The sharpness of the cubic filter with which the whole is scaled down."""


@dataclasses.dataclass(frozen=True)
class Crops:
    """A picture for the tower; the language model gets `num_tokens` features for it."""

    crops: np.ndarray
    """Float32 [1 + rows * columns, 3, 336, 336]: the whole, then the squares row by row."""
    size: tuple[int, int]
    """Height and width of the padded picture, pixels: multiples of 336."""
    num_tokens: int


@dataclasses.dataclass(frozen=True)
class Phi3VImages:
    """Cuts a picture into at most `num_crops` squares (4 and 16 are usual) and the whole."""

    num_crops: int = 16
    normalize: Normalization = Normalization()

    @classmethod
    def from_hf(cls, hf: HfConfig) -> Self:
        """From `preprocessor_config.json`; raises ModelConfigError."""
        return cls(count(hf, "num_crops", cls.num_crops), Normalization.from_hf(hf))

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Height and width of the padded picture; raises MediaError for one that is too thin."""
        long, short = self._resized(max(width, height), min(width, height))
        padded = math.ceil(short / SIDE) * SIDE
        return (long, padded) if width < height else (padded, long)

    @property
    def max_tokens(self) -> int:
        """No picture has more: that of `num_crops` squares one below the other."""
        return (self.num_crops + 1) * TOKENS_ALONG * (TOKENS_ALONG + 1) + 1

    def num_tokens(self, width: int, height: int) -> int:
        """Placeholder tokens of a picture of a size; raises MediaError for one that is too thin.

        Those of the squares and of the whole, one at the end of each row of either, and one
        between the two.
        """
        rows, columns = (edge // SIDE for edge in self.size(width, height))
        return (rows * columns + 1) * TOKENS_ALONG**2 + (rows + 1) * TOKENS_ALONG + 1

    def __call__(self, image: Image.Image) -> Crops:
        """Of an RGB picture; raises MediaError for one that is too thin."""
        pixels = self.normalize(self._padded(image))
        height, width = pixels.shape[1:]
        squares = pixels.reshape(3, height // SIDE, SIDE, width // SIDE, SIDE)
        squares = squares.transpose(1, 3, 0, 2, 4).reshape(-1, 3, SIDE, SIDE)
        whole = _cubic_rows(_cubic_rows(pixels).swapaxes(1, 2)).swapaxes(1, 2)
        tokens = self.num_tokens(*image.size)
        return Crops(np.concatenate([whole[None], squares]), (height, width), tokens)

    def _padded(self, image: Image.Image) -> Image.Image:
        if image.width < image.height:  # upright pictures are worked on lying
            lying = image.transpose(Image.Transpose.TRANSPOSE)
            return self._padded(lying).transpose(Image.Transpose.TRANSPOSE)
        width, height = self._resized(*image.size)
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        padded = Image.new("RGB", (width, math.ceil(height / SIDE) * SIDE), "white")
        padded.paste(resized, (0, (padded.height - height) // 2))
        return padded

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height before padding, of a picture at least as wide as high."""
        ratio, across = width / height, 1
        while (across + 1) * math.ceil((across + 1) / ratio) <= self.num_crops:
            across += 1
        if (scaled := int(across * SIDE / ratio)) < 1:
            raise MediaError(
                f"A picture has sides of {width} and {height} pixels; the long one may be at most "
                f"{across * SIDE} times the short one. Cut or pad it."
            )
        return across * SIDE, scaled


def _cubic_rows(pixels: np.ndarray) -> np.ndarray:
    """[C, n * 336, W] -> [C, 336, W] by cubic interpolation at the new rows' middles.

    Four neighbours count whatever the scale, without smoothing; edges are repeated.
    """
    rows = pixels.shape[1]
    place = (np.arange(SIDE) + 0.5) * (rows / SIDE) - 0.5
    first = np.floor(place).astype(int)
    out = np.zeros((pixels.shape[0], SIDE, pixels.shape[2]), np.float32)
    for tap in range(-1, 3):
        taken = np.clip(first + tap, 0, rows - 1)
        weight = _cubic_weight(np.abs(place - (first + tap)))
        out += pixels[:, taken] * weight.astype(np.float32)[:, None]
    return out


def _cubic_weight(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution at distances of 0 to 2."""
    near = (_CUBIC + 2) * x**3 - (_CUBIC + 3) * x**2 + 1
    far = _CUBIC * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, far)
