"""Pictures of any resolution in tiles, as in LLaVA-NeXT and LLaVA-OneVision (arXiv:2408.03326).

Of some sizes the one is chosen in which most of a picture is seen; the picture is scaled to fit in,
padded with black to its middle, and cut into squares. Sizes here are heights and widths.
"""

import math
from collections.abc import Iterable

from PIL import Image

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
