"""One output of a model, and the message that it means."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from quire.entrypoints.parsers import Call, Message, Parser, collect


@dataclass(frozen=True)
class Sample:
    """An output, called `what` in reports of tests."""

    what: str
    text: str
    content: str | None = None
    calls: tuple[tuple[str, str], ...] = ()
    reasoning: str | None = None

    @property
    def message(self) -> Message:
        return Message(self.reasoning, self.content, [Call(*call) for call in self.calls])


def function(name: str, **properties: Any) -> dict[str, Any]:
    """The definition of a tool."""
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def message(parser: Parser, pieces: Iterable[str]) -> Message:
    """What a parser makes of pieces."""
    events = [event for piece in pieces for event in parser.feed(piece)]
    return collect(events + parser.finish())


def pieces(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]
