"""Slots one call at a time, and turns under a load that never ends."""

import random
import types
from typing import Any

import pytest

from quire.engine.adapter_slots import AdapterSlots
from quire.engine.page_pool import PagePool
from quire.engine.request import FinishReason, Request, Sequence
from quire.engine.schedule import Schedule
from quire.engine.scheduler import Scheduler
from quire.engine.scheduler_config import SchedulerConfig
from quire.errors import OptionError

LENGTH = 20
"""Output tokens of every request of a load."""
TENURE = 8


def adapter(digest: str) -> Any:
    return types.SimpleNamespace(digest=digest)


class Slots(AdapterSlots):
    """Remembers who uses what, so that every call can be checked."""

    def __init__(self, count: int, tenure: int = TENURE) -> None:
        super().__init__(count, tenure)
        self.uses: list[tuple[int, str]] = []

    def take(self, digest: str) -> int:
        assert self.has_room(digest)
        slot = self.acquire(adapter(digest))
        self.uses.append((slot, digest))
        self.check_integrity(self.uses)
        return slot

    def drop(self, digest: str) -> None:
        slot, _ = use = next(use for use in self.uses if use[1] == digest)
        self.uses.remove(use)
        self.release(slot)
        self.check_integrity(self.uses)

    def loaded(self) -> list[tuple[int, str]]:
        return [(slot, adapter.digest) for slot, adapter in self.take_loads()]


def test_equal_adapters_share_a_slot():
    slots = Slots(2)
    assert [slots.take("a"), slots.take("a"), slots.take("b")] == [0, 0, 1]
    assert slots.loaded() == [(0, "a"), (1, "b")]
    assert slots.loaded() == []


def test_an_adapter_stays_until_another_needs_its_slot():
    slots = Slots(1)
    slots.take("a")
    slots.drop("a")
    slots.take("a")
    assert slots.loaded() == [(0, "a")]
    assert not slots.has_room("b")
    slots.drop("a")
    slots.take("b")
    assert slots.loaded() == [(0, "b")]
    assert not slots.has_room("a")


def test_empty_slots_go_first_then_the_least_recently_used():
    slots = Slots(3)
    for digest in ("a", "b"):
        slots.take(digest)
    slots.drop("b")
    slots.drop("a")
    assert slots.take("c") == 2
    slots.take("b")
    slots.drop("b")
    assert slots.take("d") == 0
    assert slots.loaded() == [(0, "a"), (1, "b"), (2, "c"), (0, "d")]


def test_without_slots_nothing_has_room():
    assert not AdapterSlots(0).has_room("a")


def test_a_negative_count_is_refused():
    with pytest.raises(OptionError, match="-1 slots for adapters"):
        AdapterSlots(-1)


def test_a_slot_cannot_be_released_twice():
    slots = Slots(1)
    slots.take("a")
    slots.drop("a")
    with pytest.raises(AssertionError, match="adapter slot 0 was released more often"):
        slots.release(0)


def test_forgetting_empties_an_idle_slot():
    slots = Slots(2)
    slots.take("a")
    slots.drop("a")
    slots.forget("a")
    slots.forget("unknown")
    slots.check_integrity([])
    slots.take("a")
    assert slots.loaded() == [(0, "a"), (0, "a")]


def test_a_forgotten_adapter_in_use_goes_on():
    slots = Slots(1)
    slots.take("a")
    slots.forget("a")
    slots.take("a")
    slots.drop("a")
    assert slots.has_room("a")
    slots.drop("a")
    slots.loaded()
    slots.take("a")
    assert slots.loaded() == [(0, "a")]


def test_the_longest_in_use_gives_way_after_its_tenure():
    slots = Slots(2, tenure=3)
    slots.start_step()
    slots.take("a")
    slots.start_step()
    slots.take("b")
    for first in (True, True, False, False):
        assert not slots.has_room("c")
        assert (slots.has_room("a"), slots.has_room("b")) == (first, True)
        slots.start_step()
    assert slots.has_room("a")  # nobody asks for its slot in this step
    assert not slots.has_room("c")
    assert not slots.has_room("d")
    assert not slots.has_room("e")
    assert (slots.has_room("a"), slots.has_room("b")) == (False, False)
    slots.start_step()
    assert not slots.has_room("c")
    slots.drop("b")  # the other slot is free first
    assert slots.take("c") == 1
    slots.start_step()
    assert slots.has_room("a")


def test_who_is_ahead_of_those_blocked_is_not_held_up():
    slots = Slots(1, tenure=0)
    slots.take("a")
    slots.start_step()
    slots.take("a")
    assert not slots.has_room("b")
    assert not slots.has_room("a")


def test_tenure_begins_anew_with_the_first_user():
    slots = Slots(1, tenure=3)
    slots.take("a")
    slots.drop("a")
    for _ in range(5):
        slots.start_step()
    slots.take("a")
    assert not slots.has_room("b")
    assert slots.has_room("a")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s._users.__setitem__(0, 2), "do not add up"),
        (lambda s: s._empty.append(0), "no state or two"),
        (lambda s: s._slots.__setitem__("z", 2), "one table only"),
        (lambda s: s._unwanted.add(1), "unwanted slots"),
        (lambda s: s._in_use.__setitem__(0, 9), "out of order"),
    ],
)
def test_check_integrity_sees_damage(damage: Any, message: str):
    slots = Slots(3)
    for digest in ("a", "b", "c"):
        slots.take(digest)
    slots.drop("b")
    damage(slots)
    with pytest.raises(AssertionError, match=message):
        slots.check_integrity(slots.uses)


# Through the scheduler


class Load:
    """A scheduler whose requests end after LENGTH tokens, read before the next step."""

    def __init__(self, count: int, *, num_pages: int = 1000, **options: Any) -> None:
        limits: dict[str, Any] = {
            "max_num_seqs": 8,
            "max_num_batched_tokens": 64,
            "max_model_len": 200,
        } | options
        self.slots = AdapterSlots(count, TENURE)
        config = SchedulerConfig(**limits)
        self.scheduler = Scheduler(config, PagePool(num_pages, 4), self.slots)
        self.arrivals = 0
        self.steps = 0
        self.begun: dict[Sequence, int] = {}
        self.content: dict[int, str] = {}

    def add(self, digest: str, length: int = 3, n: int = 1, **fields: Any) -> Sequence:
        number = self.arrivals
        self.arrivals += 1
        prompt = [100 * number + position for position in range(length)]
        params: Any = types.SimpleNamespace(prompt_logprobs=None)
        given = adapter(digest) if digest else None
        request = Request(f"r{number}", None, prompt, params, number, adapter=given, **fields)
        request.sequences = [
            Sequence(request, index, list(prompt), length, length + LENGTH) for index in range(n)
        ]
        self.scheduler.add(request)
        return request.sequences[0]

    def step(self) -> Schedule | None:
        schedule = self.scheduler.schedule()
        self.steps += 1
        if schedule is not None:
            self.content.update((slot, adapter.digest) for slot, adapter in schedule.loads)
            for sequence in schedule.admitted:
                self.begun.setdefault(sequence, self.steps)
            for chunk in schedule.chunks:
                self.check(chunk.sequence)
            for chunk in schedule.chunks:
                self.read(chunk.sequence, chunk.samples)
        self.scheduler.check_integrity()
        return schedule

    def check(self, sequence: Sequence) -> None:
        digest = sequence.request.adapter_digest
        assert not digest or self.content[sequence.adapter_slot] == digest
        assert bool(digest) == (sequence.adapter_slot >= 0)

    def read(self, sequence: Sequence, samples: bool) -> None:
        if samples:
            self.scheduler.on_token(sequence, 7)
            if len(sequence.tokens) == sequence.max_len:
                self.scheduler.finish(sequence, FinishReason.LENGTH)


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
@pytest.mark.parametrize(("count", "busy"), [(1, 1), (2, 2), (3, 3), (2, 5)])
def test_nobody_starves(policy: str, count: int, busy: int):
    """Each turn takes a tenure and the longest run, however many ask for the adapters before it."""
    load = Load(count, policy=policy)
    rng = random.Random(count)

    def crowd() -> None:
        while load.scheduler.num_waiting < 30:
            load.add(f"busy {rng.randrange(busy)}")

    crowd()
    for _ in range(50):
        load.step()
        crowd()
    late = [load.add(f"late {n}") for n in range(2)]
    ahead = load.scheduler.num_waiting
    turns = ahead + 2  # at worst everyone who is ahead takes a turn of its own
    while not all(sequence in load.begun for sequence in late):
        load.step()
        crowd()
        assert load.steps < 50 + turns * (TENURE + LENGTH + 2)


def test_a_blocked_adapter_gets_the_next_turn():
    load = Load(1)
    load.add("a")
    load.step()
    late = load.add("b")
    while late not in load.begun:
        load.add("a")
        load.step()
    assert load.begun[late] <= 1 + TENURE + LENGTH + 1


def test_a_batch_is_filled_before_the_turn_ends():
    """Adapters that ask in turn do not run one by one."""
    load = Load(1)
    for _ in range(8):
        load.add("a")
        load.add("b")
    schedule = load.step()
    assert schedule is not None
    assert len(schedule.chunks) == 8
    assert {chunk.sequence.request.adapter_digest for chunk in schedule.chunks} == {"a"}
    while load.scheduler.has_work:
        load.step()
    assert load.steps <= 2 * (LENGTH + 1)


def test_the_model_alone_is_never_held_up():
    load = Load(1)
    load.add("a")
    load.step()
    load.add("b")
    load.add("a")
    for _ in range(TENURE):
        load.step()
    base = load.add("")
    load.step()
    assert load.begun[base] == load.steps
    assert load.scheduler.num_running == 3


def test_an_abort_ends_the_wait_for_it():
    load = Load(1)
    load.add("a")
    load.step()
    for _ in range(TENURE):
        load.step()
    blocked, behind = load.add("b"), load.add("a")
    load.step()
    assert behind not in load.begun
    load.scheduler.abort(blocked.request)
    load.step()
    assert load.begun[behind] == load.steps


def test_higher_priority_goes_ahead_of_a_blocked_adapter():
    load = Load(1, policy="priority")
    load.add("a")
    for _ in range(TENURE + 1):
        load.step()
    blocked = load.add("b", priority=1)
    load.step()
    urgent, other = load.add("a"), load.add("a", priority=2)
    load.step()
    assert load.begun[urgent] == load.steps
    assert not {blocked, other} & load.begun.keys()


def test_sequences_of_a_request_share_a_slot():
    load = Load(1)
    load.add("a", n=4)
    schedule = load.step()
    assert schedule is not None
    assert [(slot, adapter.digest) for slot, adapter in schedule.loads] == [(0, "a")]
    assert len(schedule.admitted) == 4


def test_no_slot_is_taken_where_pages_are_missing():
    load = Load(2, num_pages=14)
    load.add("a", 30)
    load.step()
    load.add("b", 20)
    schedule = load.step()
    assert schedule is not None
    assert not schedule.loads
    assert load.slots.has_room("c")


def test_preemption_gives_the_slot_up():
    load = Load(1)
    running = load.add("a")
    load.step()
    waits = load.add("b")
    load.scheduler.preempt_all()
    load.scheduler.check_integrity()
    assert load.slots.has_room("b")
    assert running.adapter_slot == 0  # for what is in flight
    load.step()
    assert running.slot >= 0
    assert waits not in load.begun


def test_an_adapter_without_slots_is_refused():
    load = Load(0)
    with pytest.raises(OptionError, match="r0 has an adapter, but .*enable_lora=True"):
        load.add("a")
    assert not load.scheduler.has_work


def test_a_long_queue_of_blocked_adapters_costs_little():
    """A step looks at one sequence of each adapter that finds no room."""
    load = Load(1)
    load.add("a")
    load.step()
    for n in range(2000):
        load.add(f"b{n % 4}")
    asked: list[str] = []
    has_room = load.slots.has_room
    load.slots.has_room = lambda digest: asked.append(digest) or has_room(digest)
    load.step()
    assert sorted(asked) == ["b0", "b1", "b2", "b3"]
