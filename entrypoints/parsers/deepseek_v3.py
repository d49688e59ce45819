"""DeepSeek V3 and R1: marked calls, the arguments in a fence of Markdown."""

import re

from .json_format import JsonToolParser
from .reader import Steps

CALLS, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, CALL_END, SEPARATOR = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"
FENCE = "```"
_KIND = re.compile(r"\w")
_NAME = re.compile(r"[^\s<>`{]")


class DeepSeekV3Parser(JsonToolParser):
    """Reads, after `<｜tool▁calls▁begin｜>`, calls of the type, a separator, name and arguments."""

    special_tokens = True

    def _run(self) -> Steps[None]:
        while marker := (yield from self._content_until(CALLS, CALL, CALLS_END)):
            yield from self._reader.take(marker)
            if marker == CALLS_END and self._calls:
                self._reader.claim()
            elif marker == CALLS_END or not (yield from self._marked_call(marker)):
                self._spill()

    def _marked_call(self, marker: str) -> Steps[bool]:
        """Reads the first call of several, or one; tells if it began one."""
        if marker == CALLS:
            yield from self._reader.space()
            if not (yield from self._reader.take(CALL)):
                return False
        name = yield from self._head()
        if not name or (yield from self._reader.peek()) != "{":
            return False
        self._start(name)
        if (yield from self._arguments()):
            yield from self._swallow(FENCE)
            yield from self._swallow(CALL_END)
        return True

    def _head(self) -> Steps[str]:
        """Reads what is before the arguments; returns the name, or nothing if it is no call."""
        yield from self._reader.run(_KIND)
        if not (yield from self._reader.take(SEPARATOR)):
            return ""
        name = yield from self._reader.run(_NAME)
        yield from self._reader.space()
        if (yield from self._reader.take(FENCE)):
            yield from self._reader.take("json")
        yield from self._reader.space()
        return name
