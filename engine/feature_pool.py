"""Which rows of the device's array of features are whose. Plain Python and numpy, no jax."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from .media import Medium

PAGE = 16
"""Rows that are handed out together."""


@dataclasses.dataclass(eq=False, slots=True)
class _Entry:
    pages: list[int]
    rows: np.ndarray
    holders: int = 0


class FeaturePool:
    """Features of media by their content: kept until the room is needed, oldest use first.

    What somebody holds stays. The rows of what is new are filled by whoever takes `take_new`.
    """

    def __init__(self, num_rows: int) -> None:
        """`num_rows` is a multiple of PAGE; 0 where no request may have media."""
        self._free = list(range(num_rows // PAGE))
        self._entries: dict[bytes, _Entry] = {}  # the least recently used first
        self._new: list[tuple[Medium, np.ndarray]] = []
        self.num_rows = num_rows
        self.queried = 0
        """Media asked for since the start."""
        self.hits = 0
        """Of those, the ones that were there already."""

    def acquire(self, media: Sequence[Medium]) -> list[np.ndarray] | None:
        """Holds media until `release`: the rows of each, int32 [num_tokens].

        None where there is no room beside what others hold; then nothing has changed.
        """
        wanted = _by_digest(media)
        missing = [digest for digest in wanted if digest not in self._entries]
        needed = sum(_pages(wanted[digest]) for digest in missing) - len(self._free)
        idle = [d for d, e in self._entries.items() if not e.holders and d not in wanted]
        if needed > sum(len(self._entries[digest].pages) for digest in idle):
            return None
        self._evict(idle, needed)
        for digest in missing:
            self._entries[digest] = self._allocate(wanted[digest])
        for digest in wanted:
            entry = self._entries[digest] = self._entries.pop(digest)
            entry.holders += 1
        self.queried += len(wanted)
        self.hits += len(wanted) - len(missing)
        return [self._entries[one.digest].rows for one in media]

    def release(self, media: Sequence[Medium]) -> None:
        """Gives up what `acquire` gave."""
        for digest in _by_digest(media):
            self._entries[digest].holders -= 1

    def take_new(self) -> list[tuple[Medium, np.ndarray]]:
        """Media whose features are still to be computed, and where they go; each once."""
        new, self._new = self._new, []
        return new

    def clear(self) -> None:
        """Forgets everything. Nobody may hold anything."""
        self._evict(list(self._entries), self.num_rows)

    def check_integrity(self, held: Sequence[Sequence[Medium]]) -> None:
        """Raises AssertionError where rows are lost or owned twice; `held` is what each holds."""
        pages = [page for entry in self._entries.values() for page in entry.pages]
        if sorted([*self._free, *pages]) != list(range(self.num_rows // PAGE)):
            raise AssertionError(f"rows of features lost or owned twice: {pages}")
        holders = [digest for media in held for digest in _by_digest(media)]
        for digest, entry in self._entries.items():
            if entry.holders != holders.count(digest):
                raise AssertionError(f"a medium has {entry.holders} holders, not as it should")

    def _evict(self, digests: list[bytes], needed: int) -> None:
        for digest in digests:
            if needed <= 0:
                return
            pages = self._entries.pop(digest).pages
            self._free += pages
            needed -= len(pages)

    def _allocate(self, medium: Medium) -> _Entry:
        pages = [self._free.pop() for _ in range(_pages(medium))]
        rows = np.add.outer(np.array(pages, np.int32) * PAGE, np.arange(PAGE, dtype=np.int32))
        entry = _Entry(pages, rows.reshape(-1)[: medium.num_tokens])
        self._new.append((medium, entry.rows))
        return entry


def rows_for(media: Sequence[Medium]) -> int:
    """Rows that the media of one request take together."""
    return sum(map(_pages, _by_digest(media).values())) * PAGE


def _by_digest(media: Sequence[Medium]) -> dict[bytes, Medium]:
    return {one.digest: one for one in media}


def _pages(medium: Medium) -> int:
    return -(-medium.num_tokens // PAGE)
