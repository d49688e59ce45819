"""Kinds of questions."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

from .words import Turn, pick

Maker = Callable[[Random, Sequence[Any]], Turn]
"""Makes a question about media, and its answer."""


def always(media: Sequence[Any]) -> bool:
    """Whatever the media are."""
    return True


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of question."""

    share: float
    """How frequent it is."""
    make: Maker
    fits: Callable[[Sequence[Any]], bool] = always
    """Whether there is an answer about these media."""


def random_kind(rng: Random, kinds: Mapping[str, Kind], media: Sequence[Any]) -> str:
    """A kind of question that has an answer about the media."""
    fitting = {name: kind.share for name, kind in kinds.items() if kind.fits(media)}
    return pick(rng, tuple(fitting), tuple(fitting.values()))
