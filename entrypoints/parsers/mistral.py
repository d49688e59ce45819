"""Mistral: `[TOOL_CALLS]`, then a JSON list of calls, or in newer models one name and object."""

import re

from .json_format import JsonToolParser
from .reader import Steps

CALLS, CALL_ID, ARGS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
_WORD = re.compile(r"[\w.-]")


class MistralParser(JsonToolParser):
    """Reads `[TOOL_CALLS] [{"name": "f", "arguments": {...}}]` and `[TOOL_CALLS]f[ARGS]{...}`.

    Of the newer form, `[ARGS]` may be missing, and `[CALL_ID]` with an identifier, which is passed
    over, may stand before it. Several calls have a `[TOOL_CALLS]` each.
    """

    special_tokens = True

    def _run(self) -> Steps[None]:
        while (yield from self._content_until(CALLS)):
            yield from self._reader.take(CALLS)
            yield from self._reader.space()
            listed = (yield from self._reader.peek()) == "["
            if not (yield from (self._call_list() if listed else self._named_call())):
                self._spill()

    def _named_call(self) -> Steps[bool]:
        name = yield from self._reader.run(_WORD)
        if (yield from self._reader.take(CALL_ID)):
            yield from self._reader.run(_WORD)
        yield from self._reader.take(ARGS)
        yield from self._reader.space()
        if not name or (yield from self._reader.peek()) != "{":
            return False
        self._start(name)
        yield from self._arguments()
        return True
