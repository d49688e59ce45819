"""What a parser makes of a model's output: a stream of events, or one message."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Tool = Mapping[str, Any]
"""A tool as a request defines it: `{"type": "function", "function": {"name": ...}}`."""


@dataclass(frozen=True, slots=True)
class Content:
    """A piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call of the function `name` begins, the `index`-th of the output, from 0."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """A piece of the arguments of call `index`; its pieces together are a JSON object.

    They are less than that only if the model broke off, or its JSON did not go on as JSON.
    """

    index: int
    text: str


Event = Content | Reasoning | CallStart | Arguments


class Parser(ABC):
    """Reads one output of a model, piece by piece.

    However the output is cut into pieces, the texts of the events together are the same, and so
    are the calls. A call's events come after its `CallStart` and before the next one's.
    """

    special_tokens: bool = False
    """Whether it must see special tokens, so that they may not be skipped."""

    @abstractmethod
    def feed(self, text: str) -> list[Event]:
        """Takes the next piece, of any length. What may still become a marker waits."""

    @abstractmethod
    def finish(self) -> list[Event]:
        """The output is complete: gives out all that waited. Nothing may be fed after it."""


class ToolParser(Parser):
    """A parser that finds calls of tools. What turns out to be no call is content."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        self.tools = tools


@dataclass(frozen=True, slots=True)
class Call:
    """A complete call: a function's name, and its arguments as JSON text."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """All of an output. None where the model gave nothing of the kind."""

    reasoning: str | None = None
    content: str | None = None
    calls: list[Call] = field(default_factory=list[Call])


def collect(events: Iterable[Event]) -> Message:
    """The message that events make up."""
    reasoning, content, names, arguments = "", "", list[str](), list[str]()
    for event in events:
        match event:
            case Content(text):
                content += text
            case Reasoning(text):
                reasoning += text
            case CallStart(_, name):
                names.append(name)
                arguments.append("")
            case Arguments(index, text):
                arguments[index] += text
    calls = [Call(*call) for call in zip(names, arguments, strict=True)]
    return Message(reasoning or None, content or None, calls)


def parse_whole(parser: Parser, text: str) -> tuple[str | None, list[Call]]:
    """The content, if any, and the calls of a whole output."""
    message = collect([*parser.feed(text), *parser.finish()])
    return message.content, message.calls
