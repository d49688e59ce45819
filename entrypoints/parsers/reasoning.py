"""Parsers of reasoning: what the model thinks, apart from what it answers."""

from .base import StepParser
from .events import Content, Event, Parser, Reasoning
from .reader import Steps

OPEN, CLOSE = "<think>", "</think>"


class _ThinkParser(StepParser):
    """Line breaks next to the tags count neither as reasoning nor as content."""

    def _opened(self) -> Steps[bool]:
        """Takes the opening tag if the output begins with it; tells if it does."""
        yield from self._reader.space()
        opened = yield from self._reader.take(OPEN)
        if not opened:
            self._reader.rewind()
        return opened

    def _reasoning(self) -> Steps[None]:
        """Gives out what comes before the closing tag; without one, all of the output."""
        yield from self._reader.space("\n")
        self._reader.claim()
        breaks = ""
        while True:
            marker = self._reader.advance((CLOSE,))
            text = breaks + self._reader.claim()
            body = text if self._reader.ended and not marker else text.rstrip("\n")
            breaks = text[len(body) :]
            if body:
                self._give(Reasoning(body))
            if marker or self._reader.ended:
                break
            yield
        yield from self._reader.take(CLOSE)
        yield from self._reader.space("\n")
        self._reader.claim()


class DeepSeekR1Parser(_ThinkParser):
    """The output begins with reasoning, with or without `<think>`, up to `</think>`."""

    def _run(self) -> Steps[None]:
        yield from self._opened()
        yield from self._reasoning()


class Qwen3ReasoningParser(_ThinkParser):
    """The output is content, unless it begins with reasoning in `<think>` and `</think>`."""

    def _run(self) -> Steps[None]:
        if (yield from self._opened()):
            yield from self._reasoning()


class Chain(Parser):
    """Parses reasoning first, and calls in what the reasoning parser finds to be content.

    Either may be missing; without both, all is content.
    """

    def __init__(self, reasoning: Parser | None, tools: Parser | None) -> None:
        self._reasoning = reasoning
        self._tools = tools
        self.special_tokens = any(parser.special_tokens for parser in (reasoning, tools) if parser)

    def feed(self, text: str) -> list[Event]:
        if self._reasoning is None:
            return self._content(text)
        return self._pass_on(self._reasoning.feed(text))

    def finish(self) -> list[Event]:
        events = self._pass_on(self._reasoning.finish()) if self._reasoning else []
        return events + (self._tools.finish() if self._tools else [])

    def _pass_on(self, events: list[Event]) -> list[Event]:
        passed: list[Event] = []
        for event in events:
            passed += self._content(event.text) if isinstance(event, Content) else [event]
        return passed

    def _content(self, text: str) -> list[Event]:
        return self._tools.feed(text) if self._tools else [Content(text)]
