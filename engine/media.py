"""Media in prompts, as the scheduler and the runner see them. Plain Python and numpy."""

import dataclasses
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

Grid = tuple[int, int, int]
"""Features along time, height and width."""


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Prepared:
    """A medium, ready for the model's encoder."""

    digest: bytes
    """32 bytes, equal for equal features."""
    inputs: Any
    """What the encoder takes for it."""


def done(prepared: Prepared) -> "Future[Prepared]":
    """What needs no more work, as `Medium.preparing`."""
    future: Future[Prepared] = Future()
    future.set_result(prepared)
    return future


class Opened(NamedTuple):
    """A medium of which it is known how many features it has."""

    kind: str
    """As in `multimodal.names.KINDS`."""
    num_tokens: int
    grid: Grid | None
    preparing: "Future[Prepared]"


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Medium:
    """A medium at its place in a prompt, whose placeholder tokens its features stand for."""

    start: int
    """Index of its first placeholder token."""
    kind: str
    """As in `multimodal.names.KINDS`."""
    num_tokens: int
    """Placeholder tokens, one a feature."""
    grid: Grid | None
    """How the features lie, for models that rotate by it."""
    preparing: "Future[Prepared]"
    """Done before its request is queued."""

    @property
    def end(self) -> int:
        """Index of the first token behind it."""
        return self.start + self.num_tokens

    @property
    def digest(self) -> bytes:
        """Equal for equal features; waits until it is prepared."""
        return self.preparing.result().digest

    @property
    def inputs(self) -> Any:
        """What the encoder takes; waits until it is prepared."""
        return self.preparing.result().inputs


def placed(opened: Sequence[Opened], places: Sequence[tuple[int, int]]) -> tuple[Medium, ...]:
    """Media of a prompt. `places` are the first token and the number of each, in their order."""
    return tuple(Medium(start, *opened[number]) for start, number in places)


def within(media: Iterable[Medium], start: int, end: int) -> list[tuple[int, Medium]]:
    """The number of each medium that has tokens from `start` to `end` - 1, and the medium."""
    return [(i, one) for i, one in enumerate(media) if one.start < end and one.end > start]
