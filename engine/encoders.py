"""How the towers of a model take media: a run at a time, in sizes that are known ahead."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from .media import Medium


class Encoder(Protocol):
    """How prepared media become inputs of `model.encode`, whose shapes `size` alone decides.

    One that has `parts(medium)` gives what of a medium may be encoded apart, in the order of its
    rows, as media of their own.
    """

    @property
    def least(self) -> int:
        """The smallest `size` of a run, and what others are multiples of."""
        ...

    def units(self, medium: Any) -> int:
        """What a medium takes of a run's `size`: pictures, crops, patches or clips."""
        ...

    def inputs(self, media: Sequence[Any], size: int) -> dict[str, np.ndarray]:
        """Of one run: media of together at most `size` units."""
        ...

    def size_for(self, tokens: int) -> int:
        """The smallest size that takes whatever media have together `tokens` features."""
        ...

    def num_patches(self, size: int) -> int:
        """What the tower works on in a run."""
        ...

    def num_rows(self, size: int) -> int:
        """Rows that `encode` gives for `size`."""
        ...

    def num_tokens(self, medium: Any) -> int:
        """Rows of one medium; media's rows stand one after the other, padding last."""
        ...

    def abstract(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of `inputs`."""
        ...


@dataclasses.dataclass(frozen=True)
class Run:
    """Media, or parts of them, that are encoded together."""

    units: int
    """Its size, padding included."""
    num_rows: int
    """What `encode` gives."""
    inputs: dict[str, np.ndarray]
    places: list[np.ndarray]
    """The rows for the features of each."""

    def rows(self, padding: int) -> np.ndarray:
        """int32 [num_rows]: where each goes; `padding` is nowhere."""
        rows = np.full(self.num_rows, padding, np.int32)
        known = np.concatenate(self.places)
        rows[: len(known)] = known
        return rows


def runs(
    encoder: Encoder, sizes: Sequence[int], media: Iterable[tuple[Medium, np.ndarray]]
) -> Iterator[Run]:
    """Media packed into runs, in order, with the rows of each."""
    for pack in _packs(encoder, sizes[-1], _parts(encoder, media)):
        inputs = [prepared for prepared, _ in pack]
        units = sum(map(encoder.units, inputs))
        size = next(size for size in sizes if size >= units)
        rows = [rows for _, rows in pack]
        yield Run(size, encoder.num_rows(size), encoder.inputs(inputs, size), rows)


def _parts(
    encoder: Encoder, media: Iterable[tuple[Medium, np.ndarray]]
) -> Iterator[tuple[Any, np.ndarray]]:
    """Prepared media, cut where that may be, and the rows of each part."""
    divide = getattr(encoder, "parts", lambda prepared: [prepared])
    for medium, rows in media:
        start = 0
        for part in divide(medium.inputs):
            count = encoder.num_tokens(part)
            yield part, rows[start : start + count]
            start += count


def _packs(
    encoder: Encoder, most: int, parts: Iterable[tuple[Any, np.ndarray]]
) -> Iterator[list[tuple[Any, np.ndarray]]]:
    pack: list[tuple[Any, np.ndarray]] = []
    total = 0
    for part, rows in parts:
        units = encoder.units(part)
        if pack and total + units > most:
            yield pack
            pack, total = [], 0
        pack.append((part, rows))
        total += units
    if pack:
        yield pack
