"""Qwen3-Coder: a function and its parameters in tags, the values plain text."""

import re
from typing import Any

from .base import StepToolParser
from .literals import dump, parameter_schemas, typed
from .reader import Steps

OPEN, CLOSE = "<tool_call>", "</tool_call>"
FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"
_NAME = re.compile(r"[^<>\n]")


class Qwen3CoderParser(StepToolParser):
    """Reads `<tool_call><function=f><parameter=a>1</parameter></function></tool_call>`.

    The line break next to a parameter's tag is not part of its value. The tool's schema gives the
    value its type. The outer tag may be missing, and so may a parameter's end before the next tag.
    """

    def _run(self) -> Steps[None]:
        while marker := (yield from self._content_until(OPEN, FUNCTION)):
            if marker == OPEN:
                yield from self._reader.take(OPEN)
                yield from self._reader.space()
            if (yield from self._function()):
                yield from self._swallow(CLOSE)
            else:
                self._spill()

    def _function(self) -> Steps[bool]:
        """Reads one function's tag; tells if it is complete, and so a call."""
        name = yield from self._opening(FUNCTION)
        if not name:
            return False
        schema = parameter_schemas(self.tools, name)
        arguments: dict[str, Any] = {}
        yield from self._reader.space()
        while not (yield from self._reader.take(FUNCTION_END)):
            key = yield from self._opening(PARAMETER)
            value = (yield from self._value()) if key else None
            if value is None:
                return False
            arguments[key] = typed(value, key, schema)
            yield from self._reader.space()
        self._start(name)
        self._give_arguments(dump(arguments))
        return True

    def _opening(self, tag: str) -> Steps[str]:
        """Reads `<tag=name>`; returns the name, or nothing if that is not what comes."""
        if not (yield from self._reader.take(tag)):
            return ""
        name = yield from self._reader.run(_NAME)
        return name.strip() if (yield from self._reader.take(">")) else ""

    def _value(self) -> Steps[str | None]:
        text, end = yield from self._reader.until(
            PARAMETER_END, "\n" + PARAMETER, "\n" + FUNCTION_END
        )
        if end is None:
            return None
        if end == PARAMETER_END:
            yield from self._reader.take(PARAMETER_END)
            text = text.removesuffix("\n")
        return text.removeprefix("\n")
