"""Which replica serves a request: the rules one by one, and jobs of random lengths."""

import random
import types
from typing import Any

import pytest

from quire.engine import routing
from quire.engine.adapter_slots import AdapterSlots
from quire.engine.page_pool import PagePool
from quire.engine.request import FinishReason, Request, Sequence
from quire.engine.routing import Router
from quire.engine.scheduler import Scheduler
from quire.engine.scheduler_config import SchedulerConfig

PAGE = 4
COMMON = list(range(1000, 1100))
"""25 pages that prompts begin with."""


def adapter(digest: str) -> Any:
    return types.SimpleNamespace(digest=digest) if digest else None


class Load:
    """Replicas that step in turns; each request makes as many tokens as its parameters say."""

    def __init__(
        self, count: int = 2, *, num_pages: int = 1000, slots: int = 0, **options: Any
    ) -> None:
        limits: dict[str, Any] = {
            "max_num_seqs": 8,
            "max_num_batched_tokens": 256,
            "max_model_len": 400,
        }
        config = SchedulerConfig(**(limits | options))
        self.pools = [PagePool(num_pages, PAGE) for _ in range(count)]
        self.schedulers = [Scheduler(config, pool, AdapterSlots(slots)) for pool in self.pools]
        self.router = Router(self.schedulers, self.pools)
        self.arrivals = 0
        self.homes: dict[int, int] = {}
        """Where each request went first, by arrival."""
        self.places: dict[int, int] = {}
        """Where each request is or was last, by arrival."""
        self.begun: list[tuple[int, int]] = []
        """Round and arrival of each sequence, in the order in which they were first admitted."""
        self.busy: list[list[bool]] = []
        """Of each round, which replicas had work."""

    def request(
        self,
        prompt: list[int] | int,
        tokens: int = 5,
        *,
        n: int = 1,
        digest: str = "",
        prompt_logprobs: int | None = None,
        **fields: Any,
    ) -> Request:
        """Of these tokens, or of so many that no other begins with."""
        number = self.arrivals
        self.arrivals += 1
        if isinstance(prompt, int):
            prompt = [10_000 * (number + 1) + position for position in range(prompt)]
        params: Any = types.SimpleNamespace(prompt_logprobs=prompt_logprobs)
        made = Request(
            f"r{number}", None, prompt, params, number, adapter=adapter(digest), **fields
        )
        length = len(prompt)
        made.sequences = [
            Sequence(made, index, list(prompt), length, length + tokens) for index in range(n)
        ]
        return made

    def add(self, prompt: list[int] | int, tokens: int = 5, **fields: Any) -> int:
        """Sends a request to the replica that is chosen for it, and returns that."""
        request = self.request(prompt, tokens, **fields)
        index = self.router.choose(request)
        self.put(request, index)
        self.router.sent(request, index)
        return index

    def put(self, request: Request, index: int) -> None:
        self.schedulers[index].add(request)
        self.homes.setdefault(request.arrival, index)
        self.places[request.arrival] = index

    def balance(self) -> list[tuple[int, int, int]]:
        """What is taken over: arrival, from, to."""
        moved = []
        for request, giver, taker in self.router.takeovers():
            self.schedulers[giver].withdraw(request)
            self.put(request, taker)
            moved.append((request.arrival, giver, taker))
        return moved

    def step(self, index: int) -> None:
        schedule = self.schedulers[index].schedule()
        for sequence in schedule.admitted if schedule else ():
            if not sequence.preemptions:
                self.begun.append((len(self.busy), sequence.request.arrival))
        for chunk in schedule.chunks if schedule else ():
            if chunk.samples:
                self.schedulers[index].on_token(chunk.sequence, 7)
                if len(chunk.sequence.tokens) == chunk.sequence.max_len:
                    self.schedulers[index].finish(chunk.sequence, FinishReason.LENGTH)
        self.schedulers[index].check_integrity()

    def round(self) -> None:
        self.balance()
        self.busy.append([one.has_work for one in self.schedulers])
        for index in range(len(self.schedulers)):
            self.step(index)

    def run(self) -> None:
        while any(one.has_work for one in self.schedulers):
            self.round()

    @property
    def waiting(self) -> list[int]:
        return [one.num_waiting for one in self.schedulers]


def test_the_least_load_goes_first() -> None:
    load = Load(3)
    assert [load.add(length) for length in (40, 20, 10, 5, 10, 3)] == [0, 1, 2, 2, 2, 1]


def test_load_is_what_is_held_and_what_waits() -> None:
    load = Load()
    one = load.schedulers[0]
    load.put(load.request(10), 0)
    assert one.load == 10
    load.step(0)
    assert one.load == 12  # three pages
    load.put(load.request(7, n=2), 0)
    assert one.load == 26
    load.run()
    assert one.load == 0  # what is cached alone is no load


def test_a_prompt_goes_where_its_beginning_is() -> None:
    load = Load()
    load.put(load.request(COMMON), 1)
    load.run()
    assert load.add([*COMMON, 1]) == 1
    assert load.add(3) == 0
    assert load.add([*COMMON[:50], 1]) == 1


def test_the_longest_beginning_wins() -> None:
    load = Load()
    load.put(load.request(COMMON[:60]), 0)
    load.put(load.request(COMMON), 1)
    load.run()
    assert load.router.choose(load.request([*COMMON, 1])) == 1
    assert load.router.choose(load.request([*COMMON[:60], 1])) == 0


def test_too_much_load_is_worse_than_a_prompt_anew() -> None:
    load = Load(max_model_len=4000)
    load.put(load.request(COMMON), 1)
    load.run()
    load.put(load.request(200), 1)
    assert load.add([*COMMON, 1]) == 1  # 200 less 1.25 times 100 is 75: less than 100
    load.put(load.request(100), 1)
    assert load.router.choose(load.request([*COMMON, 1])) == 0  # 401 less 250.6 is more
    load.put(load.request(390), 0)
    assert load.router.choose(load.request([*COMMON, 1])) == 1


def test_where_all_have_plenty_to_do_equal_prompts_stay_together() -> None:
    """Though none of them has run yet."""
    load = Load(4, max_num_seqs=4)
    places: dict[int, list[int]] = {}
    for group in range(64):
        prompt = [100_000 * (group + 1) + position for position in range(40)]
        places[group] = [load.add(prompt) for _ in range(8)]
    late = [set(found) for group, found in places.items() if group >= 8]
    assert sum(len(found) == 1 for found in late) > 0.9 * len(late)
    loads = [one.load for one in load.schedulers]
    assert max(loads) < 1.3 * min(loads)


def test_a_beginning_that_all_share_is_soon_everywhere() -> None:
    load = Load(4)
    places = [load.add([*COMMON, *range(2000 + 20 * n, 2020 + 20 * n)]) for n in range(64)]
    counts = [places.count(index) for index in range(4)]
    assert max(counts) <= 1.5 * min(counts)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({"salt": b"mine"}, {"salt": b"yours"}),
        ({"digest": "a"}, {"digest": "b"}),
        ({"digest": "a"}, {}),
    ],
)
def test_salt_and_adapter_are_part_of_a_beginning(
    first: dict[str, Any], then: dict[str, Any]
) -> None:
    load = Load(slots=2)
    load.put(load.request(COMMON, **first), 1)
    load.run()
    assert load.router.choose(load.request([*COMMON, 1], **first)) == 1
    assert load.router.choose(load.request([*COMMON, 1], **then)) == 0


def test_an_adapter_goes_where_it_pushes_none_out() -> None:
    load = Load(slots=1)
    assert [load.add(10, digest=one) for one in "abab"] == [0, 1, 0, 1]
    assert [load.add(50, digest=one) for one in "aab"] == [0, 0, 1]  # whatever the load
    assert load.add(10, digest="c") == 1  # where there is less to do
    assert [load.add(10, digest=one) for one in "ab"] == [0, 1]  # the last one sent there counts


def test_an_adapter_is_loaded_twice_rather_than_waited_for() -> None:
    load = Load(slots=1, max_model_len=routing.DISPLACEMENT)
    load.add(10, digest="a")
    load.add(10, digest="b")
    homes = [load.add(1000, digest="a") for _ in range(20)]
    assert homes[:4] == [0] * 4
    assert set(homes) == {0, 1}


def test_adapters_with_slots_for_all_follow_the_load() -> None:
    load = Load(slots=2)
    assert [load.add(10, digest=one) for one in "aabb"] == [0, 1, 0, 1]


def test_without_a_prefix_cache_load_alone_counts() -> None:
    load = Load(enable_prefix_caching=False)
    load.put(load.request(COMMON), 1)
    load.run()
    assert load.router.choose(load.request([*COMMON, 1])) == 0


def test_pages_that_are_gone_count_no_more() -> None:
    load = Load(num_pages=40)
    load.put(load.request(COMMON), 1)
    load.run()
    load.pools[1].reset_prefix_cache()
    load.pools[0].reset_prefix_cache()
    assert load.router.choose(load.request([*COMMON, 1])) == 0


def test_what_was_sent_somewhere_is_forgotten_in_time() -> None:
    load = Load(num_pages=40)
    load.router.sent(load.request(COMMON), 1)
    assert load.router.choose(load.request([*COMMON, 1])) == 1
    load.router.sent(load.request(120), 1)
    assert load.router.choose(load.request([*COMMON, 1])) == 0
    assert len(load.router._pages_sent[1]._names) == 40


def test_an_idle_replica_takes_over_what_waits() -> None:
    load = Load(max_num_seqs=2)
    for _ in range(5):
        load.put(load.request(8), 0)
    assert not load.balance()  # nothing has had its turn yet
    load.step(0)
    assert load.waiting == [3, 0]
    assert load.balance() == [(2, 0, 1), (3, 0, 1)]  # as many as it has slots, in their order
    assert not load.balance()
    load.step(1)
    assert load.waiting == [1, 0]


def test_several_take_turns() -> None:
    load = Load(3, max_num_seqs=3)
    for _ in range(7):
        load.put(load.request(8), 1)
    load.step(1)
    assert load.balance() == [(3, 1, 0), (4, 1, 2), (5, 1, 0), (6, 1, 2)]


def test_the_most_urgent_goes_first() -> None:
    load = Load(max_num_seqs=1, policy="priority")
    for priority in (0, 5, 3, 4, 3):
        load.put(load.request(8, priority=priority), 0)
    load.step(0)
    assert load.balance() == [(2, 0, 1)]
    load.run()
    assert [arrival for _, arrival in load.begun] in ([0, 2, 4, 3, 1], [0, 2, 4, 1, 3])


def test_nothing_moves_that_has_run() -> None:
    load = Load(max_num_seqs=2)
    for _ in range(2):
        load.put(load.request(8), 0)
    load.step(0)
    load.schedulers[0].preempt_all()
    load.put(load.request(8, n=3), 0)
    load.step(0)
    load.schedulers[0].finish(next(iter(load.schedulers[0]._running)), FinishReason.STOP)
    load.step(0)  # one of the three runs, two wait
    assert load.waiting == [2, 0]
    assert not load.balance()


def test_nothing_moves_to_where_it_would_wait() -> None:
    load = Load(max_num_seqs=2, num_pages=50)
    for _ in range(3):
        load.put(load.request(100), 0)
    load.put(load.request(100), 1)
    load.step(0)
    load.step(1)
    assert load.waiting[0]
    assert not load.balance()  # 26 pages are not free there
    load.put(load.request(100), 1)
    assert not load.balance()


def test_nothing_moves_to_where_its_adapter_has_no_slot() -> None:
    load = Load(slots=1)
    for place, digest in ((0, "a"), (0, "b"), (1, "c")):
        load.put(load.request(8, digest=digest), place)
    load.step(0)
    load.step(1)
    assert load.waiting == [1, 0]
    assert not load.balance()
    load.put(load.request(8), 0)
    load.put(load.request(8, digest="c"), 0)
    load.step(0)
    assert load.waiting == [2, 0]
    assert not load.balance()  # the first in order cannot


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_jobs_of_random_lengths_end_together(count: int, seed: int, policy: str) -> None:
    """All were routed before any ran, so that only what is taken over evens their lengths out."""
    rng = random.Random(seed)
    load = Load(count, max_num_seqs=4, policy=policy)
    longest = 40
    for _ in range(40 * count):
        priority = rng.randrange(3) if policy == "priority" else 0
        # what a prompt says of its length misleads
        load.add(rng.randrange(1, 60), rng.choice((1, 2, 3, longest)), priority=priority)
    load.run()
    assert len(load.begun) == load.arrivals
    alone = [count - sum(busy) for busy in load.busy]
    first_idle = next((n for n, idle in enumerate(alone) if idle), len(alone))
    assert len(alone) - first_idle <= longest + 2
    moved = [arrival for arrival, place in load.places.items() if place != load.homes[arrival]]
    assert moved
    for index in range(count):
        rounds = {arrival: n for n, arrival in load.begun if load.homes[arrival] == index}
        if policy == "fcfs":
            assert [rounds[arrival] for arrival in sorted(rounds)] == sorted(rounds.values())
    assert all(not pool.usage for pool in load.pools)


def test_any_order_of_events_keeps_every_request() -> None:
    """Adding, stepping, aborting, moving: nothing is lost, run twice or left behind."""
    for seed in range(20):
        rng = random.Random(seed)
        load = Load(3, max_num_seqs=3, num_pages=60, slots=2)
        live: dict[int, Request] = {}
        for _ in range(200):
            match rng.randrange(4):
                case 0:
                    prompt = [*COMMON[: 4 * rng.randrange(8)], 5000 + rng.randrange(9)]
                    request = load.request(
                        prompt, rng.randrange(1, 9), n=rng.randrange(1, 3),
                        digest=rng.choice(("", "", "a", "b", "c")),
                    )  # fmt: skip
                    index = load.router.choose(request)
                    load.put(request, index)
                    load.router.sent(request, index)
                    live[request.arrival] = request
                case 1 if live:
                    request = live.pop(rng.choice(list(live)))
                    load.schedulers[load.places[request.arrival]].abort(request)
                case 2:
                    load.balance()
                case _:
                    load.step(rng.randrange(3))
            for one in load.schedulers:
                one.check_integrity()
        load.run()
        assert all(request.finished for request in live.values())
        assert all(not pool.usage for pool in load.pools)
        counts = {arrival: 0 for _, arrival in load.begun}
        for _, arrival in load.begun:
            counts[arrival] += 1
        assert max(counts.values()) <= 2  # sequences of one request
