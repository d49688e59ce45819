"""A model's output as text that is still coming, read from its beginning to its end."""

import functools
import re
from collections.abc import Generator
from typing import TypeVar

from .json_scanner import SPACE, JsonScanner

T = TypeVar("T")
Steps = Generator[None, None, T]
"""Work that yields when it needs more text, goes on when more came or none will, and ends in T."""


class Reader:
    """Moves over text that comes in pieces; what it moved over is undecided until claimed.

    No method's result depends on how the text was cut, except how far `advance` and `scan`, which
    do not wait for more, come in one call.
    """

    def __init__(self) -> None:
        self._text = ""
        self._claimed = 0
        self._at = 0
        self.ended = False
        """Whether no more text will come."""

    def add(self, text: str) -> None:
        """Appends the next piece."""
        self._text = self._text[self._claimed :] + text
        self._at -= self._claimed
        self._claimed = 0

    @property
    def undecided(self) -> str:
        """What was moved over since the last claim."""
        return self._text[self._claimed : self._at]

    def claim(self) -> str:
        """Takes what is undecided: it is never seen again."""
        text = self.undecided
        self._claimed = self._at
        return text

    def rewind(self) -> None:
        """Goes back to the beginning of what is undecided."""
        self._at = self._claimed

    def peek(self) -> Steps[str]:
        """The next character, without moving; empty at the end."""
        while self._at == len(self._text) and not self.ended:
            yield
        return self._text[self._at : self._at + 1]

    def step(self) -> Steps[str]:
        """Moves over the next character and returns it; empty at the end."""
        char = yield from self.peek()
        self._at += len(char)
        return char

    def space(self, characters: str = SPACE) -> Steps[None]:
        """Moves over those of `characters` that come next."""
        while (char := (yield from self.peek())) and char in characters:
            self._at += 1

    def run(self, character: re.Pattern[str]) -> Steps[str]:
        """Moves over the characters that match, one by one; returns them."""
        taken: list[str] = []
        while (char := (yield from self.peek())) and character.fullmatch(char):
            taken.append(char)
            self._at += 1
        return "".join(taken)

    def take(self, literal: str) -> Steps[bool]:
        """Moves over `literal` if it comes next; tells if it did."""
        while not (found := self._text.startswith(literal, self._at)):
            rest = self._text[self._at : self._at + len(literal)]
            if self.ended or not literal.startswith(rest):
                break
            yield
        self._at += len(literal) if found else 0
        return found

    def advance(self, markers: tuple[str, ...]) -> str | None:
        """Moves to the first marker, or if none has come, to where one may be beginning.

        Returns the marker, which it does not move over. No marker may lie within another.
        """
        found = _any_of(markers).search(self._text, self._at) if markers else None
        if found:
            self._at = found.start()
            return found[0]
        rest = self._text[self._at :]
        held = 0 if self.ended else max((_overlap(rest, marker) for marker in markers), default=0)
        self._at = len(self._text) - held
        return None

    def until(self, *markers: str) -> Steps[tuple[str, str | None]]:
        """Moves to the first marker, or to the end; returns the text before it, and which it is."""
        begin = self._at - self._claimed
        while (marker := self.advance(markers)) is None and not self.ended:
            yield
        return self.undecided[begin:], marker

    def scan(self, scanner: JsonScanner) -> str:
        """Moves over what has come of the JSON value that `scanner` follows; returns its JSON."""
        text, self._at = scanner.read(self._text, self._at)
        return text

    def value(self) -> Steps[str | None]:
        """Moves over a JSON value; returns its text, or None where it breaks or breaks off."""
        scanner, texts = JsonScanner(), list[str]()
        while True:
            texts.append(self.scan(scanner))
            if scanner.done or scanner.broken or self.ended:
                return "".join(texts) if scanner.done else None
            yield


@functools.lru_cache
def _any_of(markers: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, markers)))


def _overlap(text: str, marker: str) -> int:
    """Length of the longest end of `text` that `marker` begins with and is longer than."""
    lengths = range(min(len(marker) - 1, len(text)), 0, -1)
    return next((length for length in lengths if text.endswith(marker[:length])), 0)
