"""Pictures of any resolution in tiles, as in LLaVA-NeXT and LLaVA-OneVision (arXiv:2408.03326).

Of some sizes the one is chosen in which most of a picture is seen; the picture is scaled to fit in,
padded with black to its middle, and cut into squares. Sizes here are heights and widths.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable

import numpy as np
from PIL import Image

from ..errors import ModelConfigError
from .fields import HfConfig
from .pixels import Normalization

Size = tuple[int, int]
_SCALED_FROM = 1.1
"""Edges that are above the bound by less stay as they are."""
_DIGITS = 7
"""To which edges are rounded before they are cut to integers."""


def best_size(height: int, width: int, sizes: Iterable[Size]) -> Size:
    """Which of the sizes in pixels keeps most of a picture's pixels, and then wastes least."""

    def merits(size: Size) -> tuple[int, int]:
        scale = min(size[1] / width, size[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - math.prod(size)

    return max(sizes, key=merits)


def unpadded(height: int, width: int, features: Size) -> Size:
    """How much of the middle of a grid of features a picture covers."""
    rows, columns = features
    if width / height > columns / rows:
        covered = int(round(height * (columns / width), _DIGITS))
        return rows - (rows - covered) // 2 * 2, columns
    covered = int(round(width * (rows / height), _DIGITS))
    return rows, columns - (columns - covered) // 2 * 2


def bounded(features: Size, most: int) -> Size:
    """What a grid is scaled down to that has clearly more than `most` features, or its own size."""
    ratio = math.sqrt(math.prod(features) / most)
    if ratio <= _SCALED_FROM:
        return features
    return int(features[0] // ratio), int(features[1] // ratio)


def cut(image: Image.Image, size: Size, side: int, resample: Image.Resampling) -> list[Image.Image]:
    """A picture of `size` in squares, row by row."""
    height, width = size
    fitted = image.resize(_fitted(image, size), resample)
    padded = Image.new("RGB", (width, height))
    padded.paste(fitted, ((width - fitted.width) // 2, (height - fitted.height) // 2))
    return [
        padded.crop((left, top, left + side, top + side))
        for top in range(0, height, side)
        for left in range(0, width, side)
    ]


def _fitted(image: Image.Image, size: Size) -> tuple[int, int]:
    """Width and height."""
    height, width = size
    by_width, by_height = width / image.width, height / image.height
    if by_width < by_height:
        return width, min(math.ceil(image.height * by_width), height)
    return min(math.ceil(image.width * by_height), width), height


def padded_to_square(image: Image.Image, color: tuple[int, ...]) -> Image.Image:
    """A picture in the middle of a square of its long side."""
    edge = max(image.size)
    square = Image.new("RGB", (edge, edge), color)
    square.paste(image, ((edge - image.width) // 2, (edge - image.height) // 2))
    return square


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Squares:
    """Makes squares, whatever the aspect."""

    side: int
    """Pixels along an edge of a square."""
    along: int
    """Patches of the tower along it."""
    resample: Image.Resampling = Image.Resampling.BICUBIC
    normalize: Normalization = Normalization()

    def _pixels(self, images: Iterable[Image.Image]) -> np.ndarray:
        """Float32 [n, 3, side, side]."""
        edges = self.side, self.side
        return np.stack([self.normalize(image.resize(edges, self.resample)) for image in images])


@dataclasses.dataclass(frozen=True, kw_only=True)
class TiledImages(Squares):
    """Prepares pictures: the whole, and tiles of a larger version."""

    pinpoints: tuple[Size, ...]
    """Heights and widths in pixels of which the larger version has one."""
    max_squares: int | None = None
    """A grid of clearly more features than so many squares have is scaled down to about that."""

    @property
    def max_tokens(self) -> int:
        """No picture has more."""
        return self.along**2 + _most_shown(self)

    def num_tokens(self, width: int, height: int) -> int:
        """Placeholder tokens of a picture of a size, however thin it is.

        Those of the whole, of the grid without its padding, and one at the end of each line.
        """
        rows, columns = self._shown(self._kept(self._size(width, height), width, height))
        return self.along**2 + rows * (columns + 1)

    def __call__(self, image: Image.Image) -> Tiles:
        """Of an RGB picture."""
        size = self._size(*image.size)
        kept = self._kept(size, *image.size)
        pixels = self._pixels([image, *cut(image, size, self.side, self.resample)])
        return Tiles(pixels, self._grid(size), kept, self._shown(kept))

    def _size(self, width: int, height: int) -> Size:
        """Of the larger version in pixels."""
        return best_size(height, width, self.pinpoints)

    def _grid(self, size: Size) -> Size:
        return size[0] // self.side, size[1] // self.side

    def _features(self, size: Size) -> Size:
        rows, columns = self._grid(size)
        return rows * self.along, columns * self.along

    def _kept(self, size: Size, width: int, height: int) -> Size:
        """Features that a picture of a width and height covers of the larger version."""
        return unpadded(height, width, self._features(size))

    def _shown(self, kept: Size) -> Size:
        if self.max_squares is None:
            return kept
        return bounded(kept, self.max_squares * self.along**2)


@functools.lru_cache(maxsize=8)
def _most_shown(images: TiledImages) -> int:
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


def check_pinpoints(hf: HfConfig, pinpoints: tuple[Size, ...]) -> None:
    """Raises ModelConfigError where `image_grid_pinpoints` are not those of the model's config."""
    given = hf.get("image_grid_pinpoints")
    expected = [list(size) for size in pinpoints]
    if given is not None and given != expected:
        raise ModelConfigError(
            "The field 'image_grid_pinpoints' in the model's preprocessor_config.json is "
            f"{given}, and in its config.json {expected}; they must be the same. Correct the "
            "files."
        )
