"""Squares that a tower sees, and features that are sums of its rows, as the host says.

So a program depends on how many squares there are, and not on how they lie in a picture.
"""

import abc
import dataclasses
from collections.abc import Iterable, Sequence
from typing import ClassVar, Generic, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .clip import CHANNELS

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


M = TypeVar("M", bound=SquaresLike)


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
        pixels = size, CHANNELS, self.side, self.side
        return {
            "pixels": jax.ShapeDtypeStruct(pixels, np.float32),
            "index": jax.ShapeDtypeStruct(blend, np.int32),
            "weight": jax.ShapeDtypeStruct(blend, np.float32),
        }

    def inputs(self, media: Sequence[M], size: int) -> dict[str, np.ndarray]:
        """Squares, and what the features are sums of; padding is zeros.

        Raises:
            ValueError: the media have more than `size` squares, or those are of another size.
        """
        self._check(media, size)
        arrays = {name: np.zeros(s.shape, s.dtype) for name, s in self.abstract(size).items()}
        patches = self.along**2
        square = row = 0
        for medium in media:
            blend = self._blend(medium, square * patches, size * patches)
            squares = slice(square, square := square + self.units(medium))
            rows = slice(row, row := row + len(blend.index))
            arrays["pixels"][squares] = medium.pixels
            arrays["index"][rows], arrays["weight"][rows] = blend.index, blend.weight
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
