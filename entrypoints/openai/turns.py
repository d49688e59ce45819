"""Requests that come at once begin one by one, so that the event loop sees to others in between."""

import asyncio
import collections
import contextlib


class Turns:
    """A line, first come, first served: one of it goes on in each iteration of the event loop.

    Nobody has to give a turn back.
    """

    def __init__(self) -> None:
        self._line: collections.deque[asyncio.Future[None]] = collections.deque()
        self._taken = False

    def __len__(self) -> int:
        """How many wait."""
        return len(self._line)

    @property
    def taken(self) -> bool:
        """Whether the turn of this iteration is, so that `wait` will take a while."""
        return self._taken

    async def wait(self) -> None:
        """Returns when it is the caller's turn. Cancelled, it leaves the line."""
        loop = asyncio.get_running_loop()
        if not self._taken:
            self._taken = True
            loop.call_soon(self._call, loop)
            return
        turn: asyncio.Future[None] = loop.create_future()
        self._line.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            with contextlib.suppress(ValueError):  # its turn has just come
                self._line.remove(turn)
            raise

    def _call(self, loop: asyncio.AbstractEventLoop) -> None:
        """The next one, who goes on in the iteration that is to come."""
        while self._line:
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(None)
                loop.call_soon(self._call, loop)
                return
        self._taken = False
