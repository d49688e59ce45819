"""Hermes and Qwen 2.5: JSON objects, each between its own tags."""

from .json_format import JsonToolParser
from .reader import Steps

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class HermesParser(JsonToolParser):
    """Reads `<tool_call>{"name": "f", "arguments": {...}}</tool_call>`."""

    special_tokens = True

    def _run(self) -> Steps[None]:
        while (yield from self._content_until(OPEN)):
            yield from self._reader.take(OPEN)
            yield from self._reader.space()
            if (yield from self._call()):
                yield from self._swallow(CLOSE)
            else:
                self._spill()
