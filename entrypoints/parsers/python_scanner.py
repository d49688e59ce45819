"""Where brackets of Python code close, found while it is still being written."""

from collections.abc import Iterator

_OPENERS, _CLOSERS = "([{", ")]}"


class PythonScanner:
    """Follows code from its first bracket to the one that closes it, past strings."""

    def __init__(self) -> None:
        self._depth = 0
        self._quote = ""
        self._inside = ""
        self._escaped = False
        self._emptied = ""

    @property
    def depth(self) -> int:
        """How many brackets are open."""
        return self._depth

    @property
    def in_string(self) -> bool:
        return bool(self._quote)

    def step(self, char: str) -> None:
        """Takes the next character."""
        if self._quote:
            self._in_string(char)
        elif char == self._emptied:
            # a quote right after an empty string: those three open a longer one
            self._quote, self._inside, self._emptied = char * 3, "", ""
        else:
            self._in_code(char)

    def _in_code(self, char: str) -> None:
        self._emptied = ""
        if char in "\"'":
            self._quote, self._inside = char, ""
        elif char in _OPENERS:
            self._depth += 1
        elif char in _CLOSERS:
            self._depth -= 1

    def _in_string(self, char: str) -> None:
        if self._escaped or char == "\\":
            self._escaped = not self._escaped
            self._inside = "\\"
            return
        if not self._inside and char == self._quote:
            self._emptied = char
        self._inside = (self._inside + char)[-len(self._quote) :]
        if self._inside == self._quote:
            self._quote = ""


def split(code: str, separator: str) -> Iterator[str]:
    """The parts of `code` between separators that are in no bracket and no string."""
    scanner, start = PythonScanner(), 0
    for at, char in enumerate(code):
        scanner.step(char)
        if char == separator and not scanner.depth and not scanner.in_string:
            yield code[start:at]
            start = at + 1
    yield code[start:]
