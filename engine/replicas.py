"""The loops of several replicas as one: what `EngineCore` is for one model."""

import time
from collections.abc import Sequence

from .core import EngineCore
from .output_processor import Sink
from .request import Request
from .routing import Router

_PAUSE = 5e-5
"""Seconds between two looks at devices that are all busy. Each has a step queued behind the one
that runs, so that it does not notice; shorter, and the looks would keep other threads from
Python's lock."""


class Replicas:
    """Serves requests by the cores of several replicas. One thread at a time may call it."""

    def __init__(self, cores: Sequence[EngineCore], router: Router) -> None:
        """`router` chooses among the schedulers of `cores`, in their order."""
        self._cores = cores
        self._router = router

    @property
    def has_work(self) -> bool:
        """Whether `step` would do anything."""
        return any(core.has_work for core in self._cores)

    @property
    def num_waiting(self) -> int:
        """Sequences that are queued and do not run."""
        return sum(core.num_waiting for core in self._cores)

    @property
    def num_steps(self) -> int:
        """Steps dispatched since the start."""
        return sum(core.num_steps for core in self._cores)

    def add(self, request: Request, sink: Sink) -> None:
        """Queues a request at one of the replicas. Raises what `Scheduler.add` raises."""
        self._check_alive()
        index = self._router.choose(request)
        self._cores[index].add(request, sink)
        self._router.sent(request, index)

    def abort(self, request_id: str) -> bool:
        """Ends a request now and frees its pages. False if it is not known, or no longer."""
        return any(core.abort(request_id) for core in self._cores)

    def abort_all(self) -> None:
        """Aborts every request."""
        for core in self._cores:
            core.abort_all()

    def step(self) -> None:
        """Lets every replica go on that can without waiting for its device; sleeps a moment where
        none can, so that whoever calls it may look for news meanwhile."""
        self._check_alive()
        for request, giver, taker in self._router.takeovers():
            self._cores[giver].withdraw(request)
            self._cores[taker].take(request)
        working = [core for core in self._cores if core.has_work]
        if working and not any([core.advance() for core in working]):
            time.sleep(_PAUSE)

    def recompute_all(self) -> None:
        """Reads what is in flight, then makes every running sequence start over from its tokens."""
        for core in self._cores:
            core.recompute_all()

    def _check_alive(self) -> None:
        """Raises EngineClosedError where one has died of an error: requests of all wait for it."""
        for core in self._cores:
            core.check_alive()
