"""Rows answered side by side, their answers in the rows' order, in bounded memory."""

import asyncio
import collections
import dataclasses
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import NamedTuple

from .rows import Answer, Row


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """How far a window reaches."""

    asked: int
    """Most rows that are being answered."""
    held: int
    """Most rows that are being answered or wait for one before them."""
    held_bytes: int = 2**30
    """About the most bytes of these; one row may have more."""


class _Held(NamedTuple):
    task: asyncio.Task[Answer]
    size: int


class Window:
    """Keeps as many rows before the engine as the limits allow. On one event loop."""

    def __init__(self, answer: Callable[[Row], Awaitable[Answer]], limits: Limits) -> None:
        self._answer = answer
        self._limits = limits
        self._held: collections.deque[_Held] = collections.deque()
        self._asked = self._bytes = 0
        self._news = asyncio.Event()

    async def in_order(self, rows: AsyncGenerator[Row, None]) -> AsyncGenerator[list[Answer], None]:
        """The answers to all rows, in their order: each time all whose turn has come.

        Raises what answering a row raises, in its turn. Closing it ends what is being answered.
        """
        more = True
        try:
            while more or self._held:
                while more and self._has_room():
                    row = await anext(rows, None)
                    more = row is not None
                    if row is not None:
                        self._ask(row)
                if ready := self._ready():
                    yield ready
                elif self._held:
                    await self._news.wait()
                    self._news.clear()
        finally:
            await self._close()

    def _has_room(self) -> bool:
        limits = self._limits
        return not self._held or (
            self._asked < limits.asked
            and len(self._held) < limits.held
            and self._bytes < limits.held_bytes
        )

    def _ask(self, row: Row) -> None:
        self._asked += 1
        self._bytes += row.size
        self._held.append(_Held(asyncio.create_task(self._run(row)), row.size))

    async def _run(self, row: Row) -> Answer:
        try:
            return await self._answer(row)
        finally:
            self._asked -= 1
            self._news.set()

    def _ready(self) -> list[Answer]:
        ready: list[Answer] = []
        while self._held and self._held[0].task.done():
            if ready and self._held[0].task.exception() is not None:
                break  # what came before it shall not be lost
            task, size = self._held.popleft()
            self._bytes -= size
            ready.append(task.result())
        return ready

    async def _close(self) -> None:
        for task, _ in self._held:
            task.cancel()
        await asyncio.gather(*(task for task, _ in self._held), return_exceptions=True)
