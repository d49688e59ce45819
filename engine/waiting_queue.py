"""The sequences that wait for a slot, in order. Plain Python, no jax."""

import heapq
from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterator

from .request import Sequence

Order = Callable[[Sequence], tuple[int, ...]]
"""What sequences are sorted by; no two that wait have the same."""


class WaitingQueue:
    """Sequences by their order, those of each adapter in a line of their own.

    So a pass over the queue costs what it admits and one look at each adapter, however many wait.
    """

    def __init__(self, order: Order) -> None:
        self._order = order
        self._lines: dict[str, list[Sequence]] = {}  # by the adapter's digest, none of them empty
        self.prompt_tokens = 0
        """Of all that wait."""

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def __bool__(self) -> bool:
        return bool(self._lines)

    def __iter__(self) -> Iterator[Sequence]:
        return self.walk(())

    def add(self, sequence: Sequence) -> None:
        """Puts a sequence in its place."""
        insort(
            self._lines.setdefault(sequence.request.adapter_digest, []), sequence, key=self._order
        )
        self.prompt_tokens += sequence.prompt_len

    def remove(self, sequence: Sequence) -> None:
        """Takes out a sequence that was added."""
        name = sequence.request.adapter_digest
        line = self._lines[name]
        index = bisect_left(line, self._order(sequence), key=self._order)
        if line[index] is not sequence:
            raise AssertionError(f"{sequence} waits, but not in its place")
        del line[index]
        self.prompt_tokens -= sequence.prompt_len
        if not line:
            del self._lines[name]

    def walk(self, closed: Collection[str]) -> Iterator[Sequence]:
        """All in order, less the lines in `closed`, which may grow meanwhile; the queue may not."""
        lines = [_until_closed(*line, closed) for line in self._lines.items()]
        return heapq.merge(*lines, key=self._order)

    def check_integrity(self) -> None:
        """Raises AssertionError where a line is empty or out of order."""
        for name, line in self._lines.items():
            keys = [self._order(sequence) for sequence in line]
            if not keys or keys != sorted(keys):
                raise AssertionError(f"waiting sequences out of order: {name!r} {keys}")
            if {sequence.request.adapter_digest for sequence in line} != {name}:
                raise AssertionError(f"waiting sequences in a line not their own: {name!r} {line}")
        if (waiting := sum(sequence.prompt_len for sequence in self)) != self.prompt_tokens:
            raise AssertionError(f"{waiting} tokens wait, not {self.prompt_tokens}")


def _until_closed(name: str, line: list[Sequence], closed: Collection[str]) -> Iterator[Sequence]:
    for sequence in line:
        if name in closed:
            return
        yield sequence
