"""What goes through a batch job: rows, their answers, and what gives one and makes the other."""

import dataclasses
from collections.abc import Collection, Iterable, Iterator
from typing import Any, Protocol

ROWS = 256
BYTES = 4 * 2**20
"""Most rows of a block, and about the most bytes."""


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """A row of the input."""

    fields: dict[str, Any]
    """Its columns; empty where it cannot be read."""
    size: int
    """Bytes that it takes, about."""
    problem: str | None = None
    """Why it cannot be read."""


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What a row gave."""

    line: bytes
    """For the output: JSON, with the end of the line."""
    failed: bool
    """Whether it is an error."""
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Source(Protocol):
    """A file of rows. All methods raise OSError where it cannot be read any more."""

    @property
    def names(self) -> Collection[str]:
        """Columns: those of the first row that can be read, or all there are."""
        ...

    def count(self) -> int:
        """How many rows there are; reads all of the file where it does not say."""
        ...

    def blocks(self, skip: int, names: Collection[str] | None = None) -> Iterator[list[Row]]:
        """The rows behind the first `skip`, in blocks of at most `ROWS`, none of them empty.

        Rows may have other columns than `names`; None asks for all.
        """
        ...


class Form(Protocol):
    """A way to ask and to answer."""

    async def answer(self, row: Row) -> Answer:
        """The answer to a row that can be read; raises whatever is wrong with it."""
        ...

    def refusal(self, row: Row, error: Exception) -> Answer:
        """The answer to a row that `answer` raised `error` for, or that cannot be read."""
        ...


def in_blocks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Rows in blocks, as `Source.blocks` gives them."""
    block: list[Row] = []
    size = 0
    for row in rows:
        block.append(row)
        size += row.size
        if len(block) == ROWS or size >= BYTES:
            yield block
            block, size = [], 0
    if block:
        yield block
