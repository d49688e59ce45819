"""A conversation about media as text, of which the model is meant to write some pieces."""

import dataclasses
from typing import Generic, TypeVar

Medium = TypeVar("Medium")
Segment = tuple[str, bool]
"""A piece of a text, and whether the model is meant to write it."""


@dataclasses.dataclass(frozen=True)
class Dialogue(Generic[Medium]):
    """Media and questions about them; the last answer is what a test asks for."""

    kind: str
    """Of the last question."""
    media: tuple[Medium, ...]
    """In their order in the text."""
    segments: tuple[Segment, ...]
    """The last two are the last answer, and the token that ends it."""

    @property
    def prompt(self) -> str:
        """Everything before the last answer."""
        return "".join(text for text, _ in self.segments[:-2])

    @property
    def answer(self) -> str:
        """What the model has to write, without its stop token."""
        return self.segments[-2][0].removeprefix(" ")

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(text for text, _ in self.segments)
