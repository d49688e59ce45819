"""JSON lists of calls after a marker: what several formats share."""

from .json_format import JsonToolParser
from .reader import Steps


class MarkedListParser(JsonToolParser):
    """Reads lists of calls after a marker, and one at the beginning of the output without it.

    Without the marker a list may be prose, so an object without arguments is no call there.
    """

    markers: tuple[str, ...]
    """What may stand before a list."""
    closer: str
    """What may stand after a list that a marker began."""

    def _run(self) -> Steps[None]:
        yield from self._reader.space()
        if not (yield from self._call_list(need_arguments=True)):
            self._reader.rewind()
        while marker := (yield from self._content_until(*self.markers)):
            yield from self._reader.take(marker)
            yield from self._reader.space()
            if (yield from self._call_list()):
                yield from self._swallow(self.closer)
            else:
                self._spill()
