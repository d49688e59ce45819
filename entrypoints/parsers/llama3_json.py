"""Llama 3.1 and later: bare JSON objects, several joined by `;`."""

from .json_format import JsonToolParser
from .json_scanner import SPACE
from .reader import Steps

TAG = "<|python_tag|>"


class Llama3JsonParser(JsonToolParser):
    """Reads `{"name": "f", "parameters": {...}}; {...}`, anywhere in the text.

    `<|python_tag|>` may stand before a call. Any object may be prose, so one without arguments is
    no call.
    """

    between = SPACE + ";"

    def _run(self) -> Steps[None]:
        while marker := (yield from self._content_until(TAG, "{")):
            if marker == TAG:
                yield from self._reader.take(TAG)
                yield from self._reader.space()
            if not (yield from self._call(need_arguments=True)):
                self._spill()
