"""Which of several replicas serves a request. Plain Python, no jax.

A request goes where it costs least: the tokens of its prompt that a replica would have to compute,
since their pages are not cached there, and those by which the replica's load is above SPREAD times
the average. What is cached is weighed against load as in Srivatsa et al., "Preble"
(arXiv:2407.00023), and load counts from a bound on as in Mirrokni et al., "Consistent Hashing with
Bounded Loads" (arXiv:1608.01350): where all have plenty to do, equal beginnings stay together.

How long a request takes is not known when it comes. So a replica that runs out of requests takes
some over that wait at another.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence

from .page_pool import PagePool
from .request import Request
from .scheduler import Scheduler

SPREAD = 1.25
"""Load of a replica, in averages of all, from which on it costs."""


class Router:
    """Chooses among replicas, which are equal but for what they hold."""

    def __init__(self, schedulers: Sequence[Scheduler], pools: Sequence[PagePool]) -> None:
        """The scheduler and the pool of each replica."""
        self._schedulers = schedulers
        self._pools = pools
        self._page_size = pools[0].page_size
        self._expected = [_Expected(pool.num_pages) for pool in pools]

    def choose(self, request: Request) -> int:
        """The replica for a request that is new; among equals the one with the least load."""
        loads = [one.load for one in self._schedulers]
        bound = SPREAD * sum(loads) / len(loads)
        cached = self._cached_tokens(request)

        def cost(index: int) -> tuple[float, int]:
            return max(0.0, loads[index] - bound) - cached[index], loads[index]

        return min(range(len(loads)), key=cost)

    def sent(self, request: Request, index: int) -> None:
        """Notes which replica a request went to: its prompt will be cached there."""
        self._expected[index].add(self._chain(request))

    def takeovers(self) -> Iterator[tuple[Request, int, int]]:
        """Requests that wait, the replica that had no room for them, and one that has.

        They go in their order. Whoever is given one moves it before asking for the next.
        """
        givers = {i for i, one in enumerate(self._schedulers) if one.has_left_over}
        rooms = [one.room() if givers else (0, 0) for one in self._schedulers]
        while givers and any(slots > 0 for slots, _ in rooms):
            giver = max(givers, key=lambda i: self._schedulers[i].num_waiting)
            request = self._schedulers[giver].never_run()
            taker = None if request is None else self._taker(request, rooms)
            if request is None or taker is None:
                givers.remove(giver)
                continue
            slots, pages = rooms[taker]
            rooms[taker] = slots - len(request.sequences), pages - self._pages(request)
            self.sent(request, taker)
            yield request, giver, taker

    def _taker(self, request: Request, rooms: list[tuple[int, int]]) -> int | None:
        """The replica with the most slots of those that could run it at once."""
        needed = self._pages(request)
        able = [
            index
            for index, (slots, pages) in enumerate(rooms)
            if slots > 0 and pages >= needed and self._schedulers[index].has_slot_for(request)
        ]
        return max(able, key=lambda index: rooms[index][0], default=None)

    def _pages(self, request: Request) -> int:
        """For its prompt, which its sequences share, and a token of each."""
        return -(-len(request.prompt_token_ids) // self._page_size) + len(request.sequences)

    def _cached_tokens(self, request: Request) -> list[int]:
        """Of its prompt, by replica: cached, or on their way."""
        pages = [0] * len(self._schedulers)
        found = list(range(len(pages)))
        for digest in self._chain(request):
            found = [index for index in found if self._has(index, digest)]
            if not found:
                break
            for index in found:
                pages[index] += 1
        return [count * self._page_size for count in pages]

    def _has(self, index: int, digest: bytes) -> bool:
        return self._pools[index].knows(digest) or digest in self._expected[index]

    def _chain(self, request: Request) -> Iterable[bytes]:
        """Hashes of the full pages of its prompt, equal for all replicas."""
        return self._schedulers[0].prefix_hashes(request)


class _Expected:
    """Hashes of pages that a replica was sent to compute: the last ones, as many as it has room
    for."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._hashes: OrderedDict[bytes, None] = OrderedDict()

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._hashes

    def add(self, hashes: Iterable[bytes]) -> None:
        for digest in hashes:
            self._hashes[digest] = None
            self._hashes.move_to_end(digest)
        while len(self._hashes) > self._most:
            self._hashes.popitem(last=False)
