"""The prompts of one call on their way to the queue: read, made into requests, prepared."""

import itertools
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

from .prompts import Prompt
from .reading import Reading
from .request import Request

_AHEAD = 32
"""Prompts with media that are read or prepared before their turn: what is in memory for them."""
_QUEUED = 64
"""Requests with media that may wait in the queue, each with what was prepared for it."""


class Incoming:
    """Requests of one call, in their order, each to be queued once its media are prepared."""

    def __init__(self, reading: Reading, make: Callable[[int, Prompt], Request]) -> None:
        """Raises what reading or `make` raises, of all prompts where none has media."""
        self.made: list[Request] = []
        """Those that exist, queued or not."""
        self._count = len(reading)
        self._make = make
        self._waiting: deque[Request] = deque()
        """Made and not queued."""
        self._read: deque[Future[Prompt]] = deque()
        self._threads, self._jobs = reading.threads, iter(reading.jobs)
        if self._threads is None:
            for prompt in reading.all():
                self._add(prompt)
        self._read_ahead()

    def __len__(self) -> int:
        return self._count

    def wait(self) -> None:
        """Blocks until the next one can be queued. Raises what reading it raised."""
        if not self._waiting and self._read:
            self._take()
        if self._waiting:
            self._waiting[0].wait_for_media()

    def next(self, queued: int) -> Request | None:
        """The next one, if it can be queued behind the `queued` that wait there.

        Raises what reading it raised.
        """
        if self._threads is not None and queued >= _QUEUED:
            return None
        if not self._waiting and self._read and self._read[0].done():
            self._take()
        if self._waiting and self._waiting[0].prepared:
            return self._waiting.popleft()
        return None

    def cancel(self) -> None:
        """Reads no more."""
        for future in self._read:
            future.cancel()

    def _take(self) -> None:
        self._add(self._read.popleft().result())
        self._read_ahead()

    def _add(self, prompt: Prompt) -> None:
        request = self._make(len(self.made), prompt)
        self.made.append(request)
        self._waiting.append(request)

    def _read_ahead(self) -> None:
        if self._threads is not None:
            for job in itertools.islice(self._jobs, _AHEAD - len(self._read)):
                self._read.append(self._threads.submit(job))
