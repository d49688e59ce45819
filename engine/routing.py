"""Which of several replicas serves a request. Plain Python, no jax.

A request goes where it costs least: the tokens of its prompt that a replica would have to compute,
since their pages are not cached there, those by which the replica's load is above SPREAD times the
average, and DISPLACEMENT where its adapter would push another one out. What is cached is weighed
against load as in Srivatsa et al., "Preble" (arXiv:2407.00023), and load counts from a bound on as
in Mirrokni et al., "Consistent Hashing with Bounded Loads" (arXiv:1608.01350): where all have
plenty to do, equal beginnings stay together.

How long a request takes is not known when it comes. So a replica that runs out of requests takes
some over that wait at another.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Sequence

from .page_pool import PagePool
from .request import Request
from .scheduler import Scheduler

SPREAD = 1.25
"""Load of a replica, in averages of all, from which on it costs."""
DISPLACEMENT = 4096
"""Tokens. To load an adapter takes about as long as so many, and then the other one is missed."""


class Router:
    """Chooses among replicas, which are equal but for what they hold."""

    def __init__(self, schedulers: Sequence[Scheduler], pools: Sequence[PagePool]) -> None:
        """The scheduler and the pool of each replica."""
        self._schedulers = schedulers
        self._pools = pools
        self._page_size = pools[0].page_size
        self._pages_sent = [_Recent(pool.num_pages) for pool in pools]
        self._adapters_sent = [_Recent(one.num_adapter_slots) for one in schedulers]

    def choose(self, request: Request) -> int:
        """The replica for a request that is new; among equals the one with the least load."""
        loads = [one.load for one in self._schedulers]
        bound = SPREAD * sum(loads) / len(loads)
        cached = self._cached_tokens(request)

        def cost(index: int) -> tuple[float, int]:
            tokens = max(0.0, loads[index] - bound) - cached[index]
            return tokens + DISPLACEMENT * self._displaces(request, index), loads[index]

        return min(range(len(loads)), key=cost)

    def sent(self, request: Request, index: int) -> None:
        """Notes which replica a request went to: its prompt will be cached there, and its adapter
        will be in a slot."""
        self._pages_sent[index].add(self._chain(request))
        if request.adapter is not None:
            self._adapters_sent[index].add([request.adapter_digest])

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

    def _displaces(self, request: Request, index: int) -> bool:
        """Whether the adapter of a request would take the slot of another that was sent there."""
        sent = self._adapters_sent[index]
        return request.adapter is not None and sent.full and request.adapter_digest not in sent

    def _has(self, index: int, digest: bytes) -> bool:
        return self._pools[index].knows(digest) or digest in self._pages_sent[index]

    def _chain(self, request: Request) -> Iterable[bytes]:
        """Hashes of the full pages of its prompt, equal for all replicas."""
        return self._schedulers[0].prefix_hashes(request)


class _Recent:
    """The last names that were added, as many as there is room for what they name."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._names: OrderedDict[Hashable, None] = OrderedDict()

    def __contains__(self, name: Hashable) -> bool:
        return name in self._names

    @property
    def full(self) -> bool:
        """Whether one more would push one out."""
        return len(self._names) >= self._most

    def add(self, names: Iterable[Hashable]) -> None:
        for name in names:
            self._names[name] = None
            self._names.move_to_end(name)
        while len(self._names) > self._most:
            self._names.popitem(last=False)
