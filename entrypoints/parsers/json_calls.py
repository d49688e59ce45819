"""Outputs that a forced choice of tools makes: they are JSON and nothing else."""

from collections.abc import Sequence

from .events import Tool
from .json_format import JsonToolParser
from .reader import Steps


class RequiredCallsParser(JsonToolParser):
    """Reads `[{"name": "f", "parameters": {...}}]`, of `tool_choice: "required"`."""

    def _run(self) -> Steps[None]:
        yield from self._reader.space()
        if not (yield from self._call_list()):
            self._spill()


class NamedCallParser(JsonToolParser):
    """Reads an output that is the arguments of one function, `name`, which the request chose."""

    def __init__(self, tools: Sequence[Tool], name: str) -> None:
        super().__init__(tools)
        self._name = name

    def _run(self) -> Steps[None]:
        yield from self._reader.space()
        if (yield from self._reader.peek()) == "{":
            self._start(self._name)
            yield from self._arguments()
