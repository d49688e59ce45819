"""Squares that a tower sees, and features that are sums of its rows, as the host says.

So a program depends on how many squares there are, and not on how they lie in a picture.
"""

import abc
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..errors import ModelConfigError
from . import hf_config
from .clip import CHANNELS

Size = tuple[int, int]
"""Height and width."""

TAPS = 4
"""Rows that a feature is a sum of: what bilinear interpolation takes."""


@jax.named_scope("blend")
def blended(
    rows: Float[Array, "R E"], index: Int[Array, "F 4"], weight: Float[Array, "F 4"]
) -> Float[Array, "F E"]:
    """The sums, in float32 until they are done."""
    out = jnp.zeros((index.shape[0], rows.shape[1]), jnp.float32)
    for tap in range(TAPS):
        taken = rows.at[index[:, tap]].get(mode="clip").astype(jnp.float32)
        out = out + taken * weight[:, tap, None]
    return out.astype(rows.dtype)


def ended_blend(
    rows: Float[Array, "N P E"], end: Float[Array, " E"], inputs: Mapping[str, Array]
) -> Float[Array, "F E"]:
    """The sums that a `BlendEncoder` names, of what the projector makes of each square's patches.

    Args:
        end: what ends lines.
    """
    rows = jnp.concatenate([rows.reshape(-1, rows.shape[-1]), end[None]])
    return blended(rows, inputs["index"], inputs["weight"])


@dataclasses.dataclass(frozen=True)
class Blend:
    """Features as weighted sums of the projector's rows."""

    index: np.ndarray
    """Int [..., 4]: the rows."""
    weight: np.ndarray
    """[..., 4]"""

    @classmethod
    def scaled(cls, grid: np.ndarray, height: int, width: int) -> "Blend":
        """Of a grid of rows [H, W] a bilinear version [height, width, 4].

        Places are those of pixels' middles, and outside of the outermost there are no others.
        """
        (rows, y), (columns, x) = _taps(grid.shape[0], height), _taps(grid.shape[1], width)
        index = grid[rows[:, None, :, None], columns[None, :, None, :]]
        share = y[:, None, :, None] * x[None, :, None, :]
        shape = (TAPS, height, width)
        return cls(*(np.moveaxis(a.reshape(shape), 0, -1) for a in (index, share)))

    def ended(self, row: int) -> "Blend":
        """With `row` itself behind each line."""
        place = (0, 0), (0, 1), (0, 0)
        index = np.pad(self.index, place, constant_values=row)
        return Blend(index, np.pad(self.weight, place, constant_values=1 / TAPS))

    @classmethod
    def joined(cls, parts: "Iterable[Blend]") -> "Blend":
        """[N, 4]: one after the other, each line by line."""
        pairs = [(part.index.reshape(-1, TAPS), part.weight.reshape(-1, TAPS)) for part in parts]
        return cls(*(np.concatenate(arrays) for arrays in zip(*pairs, strict=True)))


def _taps(length: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """For `size` places along `length` the two nearest [2, size], and the share of each."""
    place = np.maximum((np.arange(size) + 0.5) * (length / max(size, 1)) - 0.5, 0)
    first = place.astype(np.int64)
    second = np.minimum(first + 1, length - 1)
    return np.stack([first, second]), np.stack([1 - (place - first), place - first])


class SquaresLike(Protocol):
    """What the tower sees of a medium."""

    @property
    def pixels(self) -> np.ndarray:
        """Float32 [n, 3, side, side]."""
        ...


@dataclasses.dataclass(frozen=True)
class Squares:
    """Of a medium or of a part of it, as `SquaresLike`."""

    pixels: np.ndarray


M = TypeVar("M", bound=SquaresLike)


@dataclasses.dataclass(frozen=True)
class SquareEncoder(abc.ABC, Generic[M]):
    """How media become inputs of `encode`, whose shapes depend on `size` alone.

    `size` counts squares that the tower sees, padding included.
    """

    side: int
    """Pixels along an edge of a square."""
    along: int
    """Patches along an edge of a square."""

    least: ClassVar[int] = 4
    """The smallest `size`."""

    def units(self, medium: M) -> int:
        """Squares of a medium."""
        return len(medium.pixels)

    def num_patches(self, size: int) -> int:
        """What the tower works on in a run, for an estimate of its memory."""
        return size * self.along**2

    @abc.abstractmethod
    def num_rows(self, size: int) -> int:
        """F: rows that `encode` gives for `size`, enough whatever the media."""

    def abstract(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of `inputs`."""
        pixels = size, CHANNELS, self.side, self.side
        return {"pixels": jax.ShapeDtypeStruct(pixels, np.float32)}

    def inputs(self, media: Sequence[M], size: int) -> dict[str, np.ndarray]:
        """Squares, one medium's after the other's; padding is zeros.

        Raises:
            ValueError: the media have more than `size` squares, or those are of another size.
        """
        self._check(media, size)
        arrays = {name: np.zeros(s.shape, s.dtype) for name, s in self.abstract(size).items()}
        start = 0
        for medium in media:
            squares = slice(start, start := start + self.units(medium))
            arrays["pixels"][squares] = medium.pixels
        return arrays

    def _check(self, media: Sequence[M], size: int) -> None:
        total = sum(map(self.units, media))
        if total > size:
            raise ValueError(
                f"A run of {size} squares is asked for media of {total}; it must have as many."
            )
        expected = CHANNELS, self.side, self.side
        for medium in media:
            if medium.pixels.shape[1:] != expected:
                raise ValueError(
                    f"Squares of shape {list(medium.pixels.shape[1:])} were prepared, but the "
                    f"model takes {list(expected)}; prepare them for it."
                )


@dataclasses.dataclass(frozen=True)
class BlendEncoder(SquareEncoder[M]):
    """One that also says what the features are sums of."""

    @abc.abstractmethod
    def _blend(self, medium: M, first: int, end: int) -> Blend:
        """The features of a medium [N, 4].

        Args:
            first: the row of its first square's first patch.
            end: the row of what ends lines.
        """

    def abstract(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of `inputs`."""
        blend = self.num_rows(size), TAPS
        return super().abstract(size) | {
            "index": jax.ShapeDtypeStruct(blend, np.int32),
            "weight": jax.ShapeDtypeStruct(blend, np.float32),
        }

    def inputs(self, media: Sequence[M], size: int) -> dict[str, np.ndarray]:
        """Squares, and what the features are sums of; padding is zeros, errors as without."""
        arrays = super().inputs(media, size)
        patches = self.along**2
        square = row = 0
        for medium in media:
            blend = self._blend(medium, square * patches, size * patches)
            square += self.units(medium)
            rows = slice(row, row := row + len(blend.index))
            arrays["index"][rows], arrays["weight"][rows] = blend.index, blend.weight
        return arrays


class TilesLike(SquaresLike, Protocol):
    """A picture as tiles: the whole first, then a grid row by row."""

    @property
    def grid(self) -> Size:
        """Rows and columns of tiles; n is 1 + their product."""
        ...

    @property
    def kept(self) -> Size:
        """Of the grid's middle in features; around it is padding."""
        ...

    @property
    def shown(self) -> Size:
        """What that is scaled to."""
        ...


@dataclasses.dataclass(frozen=True)
class TileEncoder(BlendEncoder[TilesLike]):
    """The squares of a picture are its tiles, which are encoded together."""

    most_tiles: int
    """Of one picture."""

    def size_for(self, tokens: int) -> int:
        """Tiles that take any one picture, and pictures of together `tokens` features that have
        as many as the tower gives of their tiles."""
        return max(tokens // self.along**2, self.most_tiles, self.least)

    def num_rows(self, size: int) -> int:
        """F: rows that `encode` gives for `size`, enough whatever the pictures.

        The most ends of lines have grids of one column: `along` for each tile.
        """
        return size * self.along * (self.along + 1)

    def num_tokens(self, picture: TilesLike) -> int:
        """Rows of a picture; pictures' rows stand one after the other, padding last."""
        height, width = picture.shown
        return self.along**2 + height * (width + 1)

    def _blend(self, medium: TilesLike, first: int, end: int) -> Blend:
        """The whole, then what is shown of the grid, line by line."""
        along, count = self.along, self.along**2
        rows, columns = medium.grid
        whole = np.arange(first, first + count).reshape(along, along)
        tiles = np.arange(rows * columns * count) + first + count
        grid = tiles.reshape(rows, columns, along, along).swapaxes(1, 2)
        kept = _middle(grid.reshape(rows * along, columns * along), *medium.kept)
        parts = Blend.scaled(whole, along, along), Blend.scaled(kept, *medium.shown).ended(end)
        return Blend.joined(parts)


def _middle(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    top, left = (grid.shape[0] - height) // 2, (grid.shape[1] - width) // 2
    return grid[top : top + height, left : left + width]


def pinpoints(hf: hf_config.HfConfig, side: int, default: Sequence[Size]) -> tuple[Size, ...]:
    """`image_grid_pinpoints`: sizes in pixels of which a picture's larger version has one.

    Args:
        side: pixels along an edge of a square.

    Raises:
        ModelConfigError: they are no sizes of whole squares.
    """
    given = hf.get("image_grid_pinpoints")
    given = default if given is None else given
    whole = isinstance(given, list | tuple) and len(given) > 0
    if not whole or not all(_is_whole(size, side) for size in given):
        raise ModelConfigError(
            f"The field 'image_grid_pinpoints' in the model's config.json is {given!r}; it must be "
            f"a list of heights and widths in pixels that are multiples of {side}, the image_size "
            "of vision_config. Correct the file."
        )
    return tuple((height, width) for height, width in given)


def _is_whole(size: Any, side: int) -> bool:
    if not isinstance(size, list | tuple) or len(size) != 2:
        return False
    return all(type(edge) is int and edge > 0 and edge % side == 0 for edge in size)


def most_tiles(sizes: Iterable[Size], side: int) -> int:
    """Of a picture: the squares of the largest of the sizes, and the whole."""
    return 1 + max(map(math.prod, sizes)) // side**2
