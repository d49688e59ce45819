"""Where a JSON value ends, found while it is still being written."""

import json
import re
from collections.abc import Callable

SPACE = " \t\n\r"
_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_NUMBER_BEGINS = re.compile(r"-?(0|[1-9][0-9]*)?(\.[0-9]*)?([eE][+-]?[0-9]*)?")
_WORDS = ("true", "false", "null")


class JsonScanner:
    """Follows one JSON value, of any depth, to its end or to where it stops being JSON.

    A line break or another control character inside a string, which JSON forbids but models
    write, is taken as the escape that was meant.
    """

    def __init__(self) -> None:
        self._closers: list[str] = []
        self._next: Callable[[str], bool] = self._value
        self._scalar = ""
        self._digits = 0
        self._is_key = False
        self.done = False
        """Whether the value is complete. A number is only when something else follows it."""
        self.broken = False
        """Whether what follows cannot be part of a JSON value."""

    def read(self, text: str, start: int) -> tuple[str, int]:
        """Follows `text` from `start` on: what it took of it, as valid JSON, and where it stopped.

        It stops before the end of `text` only when the value is done or broken.
        """
        taken: list[str] = []
        at = start
        while at < len(text) and not self.done:
            if self._next == self._string and (plain := _PLAIN.match(text, at)):
                taken.append(plain[0])
                at = plain.end()
                continue
            raw = self._next == self._string and text[at] < " "
            if not self._next(text[at]):
                self.broken = not self.done
                break
            taken.append(json.dumps(text[at])[1:-1] if raw else text[at])
            at += 1
        return "".join(taken), at

    def _value(self, char: str) -> bool:
        if char == '"':
            self._is_key, self._next = False, self._string
        elif char == "{":
            self._open("}", self._first_key)
        elif char == "[":
            self._open("]", self._first_item)
        elif char in "-0123456789tfn":
            self._scalar, self._next = char, self._in_scalar
        else:
            return char in SPACE
        return True

    def _open(self, closer: str, first: Callable[[str], bool]) -> None:
        self._closers.append(closer)
        self._next = first

    def _close(self, char: str) -> bool:
        if self._closers[-1] != char:
            return False
        self._closers.pop()
        self._end()
        return True

    def _end(self) -> None:
        self.done = not self._closers
        self._next = self._more

    def _first_key(self, char: str) -> bool:
        return self._close(char) or self._key(char)

    def _first_item(self, char: str) -> bool:
        return self._close(char) or self._value(char)

    def _key(self, char: str) -> bool:
        if char == '"':
            self._is_key, self._next = True, self._string
        return char == '"' or char in SPACE

    def _colon(self, char: str) -> bool:
        if char == ":":
            self._next = self._value
        return char == ":" or char in SPACE

    def _more(self, char: str) -> bool:
        if char == ",":
            self._next = self._key if self._closers[-1] == "}" else self._value
            return True
        return char in SPACE or self._close(char)

    def _string(self, char: str) -> bool:
        if char == "\\":
            self._next = self._escape
        elif char == '"' and self._is_key:
            self._next = self._colon
        elif char == '"':
            self._end()
        return True

    def _escape(self, char: str) -> bool:
        self._digits = 4
        self._next = self._hex if char == "u" else self._string
        return char in '"\\/bfnrtu'

    def _hex(self, char: str) -> bool:
        self._digits -= 1
        if not self._digits:
            self._next = self._string
        return char in "0123456789abcdefABCDEF"

    def _in_scalar(self, char: str) -> bool:
        longer = self._scalar + char
        if _NUMBER_BEGINS.fullmatch(longer) or any(word.startswith(longer) for word in _WORDS):
            self._scalar = longer
            return True
        if not _NUMBER.fullmatch(self._scalar) and self._scalar not in _WORDS:
            return False
        self._end()
        return not self.done and self._next(char)
