"""The base of Quire's own parsers: each reads the output as if it all were there, and waits."""

from abc import abstractmethod
from collections.abc import Sequence

from .events import Arguments, CallStart, Content, Event, Parser, Tool, ToolParser
from .json_scanner import SPACE
from .reader import Reader, Steps


class StepParser(Parser):
    """A parser written as steps that wait for text where they need it.

    All text ends up as an event or is claimed as syntax, so nothing is lost by mistake.
    """

    between = SPACE
    """Characters that do not count around calls: before the first, between two, after the last."""

    def __init__(self) -> None:
        self._reader = Reader()
        self._events: list[Event] = []
        self._calls = 0
        self._steps = self._all()

    def feed(self, text: str) -> list[Event]:
        self._reader.add(text)
        return self._go_on()

    def finish(self) -> list[Event]:
        self._reader.ended = True
        return self._go_on()

    def _go_on(self) -> list[Event]:
        next(self._steps, None)
        events, self._events = self._events, []
        return events

    def _all(self) -> Steps[None]:
        yield from self._run()
        yield from self._content_until()

    @abstractmethod
    def _run(self) -> Steps[None]:
        """Reads the output. What it leaves is content."""

    def _give(self, event: Event) -> None:
        self._events.append(event)

    def _spill(self) -> None:
        """Gives out as content what turned out to be no syntax."""
        if text := self._reader.claim():
            self._give(Content(text))

    def _settle(self) -> None:
        """Gives out what is left after a call that was cut short; space alone is not decided."""
        if self._reader.undecided.isspace():
            self._reader.rewind()
        else:
            self._spill()

    def _content_until(self, *markers: str) -> Steps[str | None]:
        """Gives out content up to a marker and returns that, or None at the end of the output.

        Space alone before a marker stays undecided with it: it goes the way of the marker.
        """
        begun = False
        while True:
            marker = self._reader.advance(markers)
            ignored = self.between if self._calls else SPACE
            begun = begun or bool(self._reader.undecided.strip(ignored))
            if begun:
                self._spill()
            if marker or self._reader.ended:
                break
            yield
        if not marker and self._calls:
            self._reader.claim()
        elif not marker:
            self._spill()
        return marker


class StepToolParser(StepParser, ToolParser):
    """A tool parser written as steps."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        ToolParser.__init__(self, tools)
        StepParser.__init__(self)

    def _start(self, name: str) -> None:
        """Begins a call: what was undecided was its syntax."""
        self._reader.claim()
        self._give(CallStart(self._calls, name))
        self._calls += 1

    def _give_arguments(self, text: str) -> None:
        """Gives out a piece of the arguments of the last call, and claims what it was read from."""
        self._reader.claim()
        if text:
            self._give(Arguments(self._calls - 1, text))

    def _swallow(self, closer: str) -> Steps[None]:
        """Takes the marker that ends a call, with space before it, if that is what follows."""
        yield from self._reader.space()
        if (yield from self._reader.take(closer)):
            self._reader.claim()
        else:
            self._reader.rewind()
