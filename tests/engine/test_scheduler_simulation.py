"""Random traffic through the scheduler and a simulated device that checks what every token sees.

The device stores, for each position of each page, a fingerprint of all tokens up to it (as K and V
do), finds its pages through the page-table changes it was sent, and runs one step behind the host.
The tokens of a request must be those it would get alone.
"""

import dataclasses
import random
import types
from typing import Any, Generic, TypeVar

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from quire.engine.page_pool import PagePool
from quire.engine.request import FinishReason, Request, Sequence
from quire.engine.schedule import Schedule
from quire.engine.scheduler import Scheduler
from quire.engine.scheduler_config import SchedulerConfig
from quire.errors import MemoryBudgetError

STOP = 0
VOCABULARY = 24


def fingerprint(before: int, token: int, weights: int) -> int:
    return (before * 1_000_003 + token * 7919 + weights + 1) % (2**61 - 1)


def fingerprints(tokens: list[int], salt: bytes, weights: int) -> list[int]:
    """What the pool must hold at each position: a salt stands for an adapter, so it counts."""
    value, values = int.from_bytes(salt, "big"), []
    for token in tokens:
        value = fingerprint(value, token, weights)
        values.append(value)
    return values


def sample(value: int, sequence: Sequence) -> int:
    """Some of a request's sequences agree, so that they share pages of output too."""
    number = (value // 3 + sequence.index % 2) % 60
    return STOP if number == 0 else 1 + number % (VOCABULARY - 1)


def tokens_alone(sequence: Sequence, weights: int) -> list[int]:
    tokens = list(sequence.request.prompt_token_ids)
    values = fingerprints(tokens, sequence.request.salt, weights)
    while len(tokens) < sequence.max_len and STOP not in tokens[sequence.prompt_len :]:
        tokens.append(sample(values[-1], sequence))
        values.append(fingerprint(values[-1], tokens[-1], weights))
    return tokens


class Device:
    """Runs schedules at once and in order, from what the host knows when it dispatches them."""

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self.weights = 0
        self.memory: dict[tuple[int, int], int] = {}
        self.page_table: dict[tuple[int, int], int] = {}
        self.last_token: dict[int, int] = {}

    def run(self, schedule: Schedule, stale: set[Sequence]) -> list[tuple[Sequence, int]]:
        """Sampled tokens. The pages of `stale` sequences were begun with other weights."""
        entries = [entry[:2] for entry in schedule.new_pages]
        assert len(entries) == len(set(entries))
        self.page_table.update({(slot, index): page for slot, index, page in schedule.new_pages})
        written: set[tuple[int, int]] = set()
        for chunk in schedule.chunks:
            self.write(chunk.sequence, chunk.start, chunk.count, written)
        outputs = []
        for chunk in schedule.chunks:
            end = chunk.start + chunk.count
            if chunk.sequence not in stale:
                self.check_attended(chunk.sequence, end)
            if chunk.samples:
                token = sample(self.memory[self.place(chunk.sequence, end - 1)], chunk.sequence)
                self.last_token[chunk.sequence.slot] = token
                outputs.append((chunk.sequence, token))
        return outputs

    def place(self, sequence: Sequence, position: int) -> tuple[int, int]:
        index, offset = divmod(position, self.page_size)
        return self.page_table[sequence.slot, index], offset

    def write(self, sequence: Sequence, start: int, count: int, written: set) -> None:
        before = int.from_bytes(sequence.request.salt, "big")
        if start:
            before = self.memory[self.place(sequence, start - 1)]
        for position in range(start, start + count):
            place = self.place(sequence, position)
            assert place[0] != 0
            assert place not in written
            written.add(place)
            before = fingerprint(before, self.token(sequence, position), self.weights)
            self.memory[place] = before

    def token(self, sequence: Sequence, position: int) -> int:
        if position < len(sequence.tokens):
            return sequence.tokens[position]
        assert position == len(sequence.tokens)
        assert not sequence.waits_for_token
        return self.last_token[sequence.slot]

    def check_attended(self, sequence: Sequence, end: int) -> None:
        tokens = [self.token(sequence, position) for position in range(end)]
        seen = [self.memory[self.place(sequence, position)] for position in range(end)]
        assert seen == fingerprints(tokens, sequence.request.salt, self.weights)


class Simulation:
    """A small engine: the scheduler under test, the device, and one step in flight."""

    def __init__(self, config: SchedulerConfig, pool: PagePool) -> None:
        self.config = config
        self.pool = pool
        self.scheduler = Scheduler(config, pool)
        self.device = Device(pool.page_size)
        self.in_flight: list[tuple[Sequence, int]] = []
        self.requests: list[Request] = []
        self.stale: set[Sequence] = set()
        self.refused = 0
        self.verified = 0
        self.first_admissions: list[tuple[int, int]] = []

    def add(self, prompt: list[int], max_tokens: int, n: int = 1, **fields: Any) -> None:
        waits = fields.pop("waits_for_token", False)
        params: Any = types.SimpleNamespace(prompt_logprobs=fields.pop("prompt_logprobs", None))
        number = len(self.requests)
        request = Request(f"r{number}", None, prompt, params, number, **fields)
        length = len(prompt)
        request.sequences = [
            Sequence(request, i, list(prompt), length, length + max_tokens, waits_for_token=waits)
            for i in range(n)
        ]
        try:
            self.scheduler.add(request)
        except MemoryBudgetError:
            self.refused += 1
            assert -(-(length + max_tokens - 1) // self.pool.page_size) >= self.pool.num_pages
        else:
            self.requests.append(request)

    def step(self) -> None:
        """Dispatches the next step, then reads the tokens of the one before."""
        free_slots = self.config.max_num_seqs - self.scheduler.num_running
        schedule = self.scheduler.schedule()
        outputs = []
        if schedule is not None:
            self.check_schedule(schedule, free_slots)
            outputs = self.device.run(schedule, self.stale)
        assert schedule or self.in_flight or not self.scheduler.has_work
        self.read_tokens()
        self.in_flight = outputs

    def read_tokens(self) -> None:
        for sequence, token in self.in_flight:
            known = len(sequence.tokens)
            self.scheduler.on_token(sequence, token)
            if sequence.finished:
                assert len(sequence.tokens) == known
            elif token == STOP:
                self.end(sequence, FinishReason.STOP)
            elif len(sequence.tokens) == sequence.max_len:
                self.end(sequence, FinishReason.LENGTH)
        self.in_flight = []

    def end(self, sequence: Sequence, reason: FinishReason) -> None:
        """Ends a sequence, whose tokens must be those it gets alone."""
        self.scheduler.finish(sequence, reason)
        if sequence not in self.stale:
            assert sequence.tokens == tokens_alone(sequence, self.device.weights)
            self.verified += 1

    def abort(self, request: Request) -> None:
        self.scheduler.abort(request)
        assert request.finished

    def update_weights(self) -> None:
        """What was begun with the old weights goes on with a mixture, which nobody may be given."""
        self.pool.reset_prefix_cache()
        self.device.weights += 1
        self.stale.update(
            sequence
            for request in self.requests
            for sequence in request.sequences
            if sequence.slot >= 0 or sequence.preemptions
        )

    def check_schedule(self, schedule: Schedule, free_slots: int) -> None:
        chunks = schedule.chunks
        assert sum(chunk.count for chunk in chunks) == schedule.num_tokens
        assert 0 < schedule.num_tokens <= self.config.max_num_batched_tokens
        assert schedule.decode_only == all(c.count == 1 and c.samples for c in chunks)
        assert len({chunk.sequence.slot for chunk in chunks}) == len(chunks)
        assert len(schedule.admitted) <= free_slots + len(schedule.preempted)
        assert not set(schedule.preempted) & {chunk.sequence for chunk in chunks}
        self.first_admissions += [
            (sequence.request.arrival, sequence.index)
            for sequence in schedule.admitted
            if not sequence.preemptions
        ]
        if self.config.policy == "fcfs":
            assert self.first_admissions == sorted(self.first_admissions)
        for chunk in chunks:
            sequence, end = chunk.sequence, chunk.start + chunk.count
            assert 0 <= sequence.slot < self.config.max_num_seqs
            assert sequence.computed == end < sequence.max_len
            assert chunk.samples == (end >= len(sequence.tokens))

    def finish(self) -> None:
        """Runs to the end: nothing may be lost, starved or leaked."""
        for _ in range(100 + 200 * len(self.requests)):
            if not (self.scheduler.has_work or self.in_flight):
                break
            self.step()
            self.scheduler.check_integrity()
        assert self.scheduler.num_waiting == self.scheduler.num_running == 0
        assert self.pool.num_free == self.pool.num_pages - 1
        assert all(request.finished for request in self.requests)


S = TypeVar("S", bound=Simulation)


@dataclasses.dataclass
class Traffic(Generic[S]):
    """Random requests, in favour of crowds and shared prefixes."""

    simulation: S
    rng: random.Random

    def operate(self) -> None:
        """One random operation, then the integrity check."""
        raise NotImplementedError

    @property
    def unfinished(self) -> list[Request]:
        return [request for request in self.simulation.requests[-20:] if not request.finished]

    def prompt(self) -> list[int]:
        rng = self.rng
        stem = random.Random(rng.randrange(3)).choices(range(1, VOCABULARY), k=30)
        return stem[: rng.randrange(31)] + rng.choices(range(1, VOCABULARY), k=rng.randrange(1, 5))

    def send(self, prompt: list[int], salts: list[bytes], **fields: Any) -> None:
        rng = self.rng
        self.simulation.add(
            prompt,
            max_tokens=rng.randint(1, 60),
            n=rng.choice((1, 1, 1, 2, 4)),
            priority=rng.randrange(3),
            salt=rng.choice(salts),
            waits_for_token=rng.random() < 0.1,
            prompt_logprobs=rng.choice((None, None, 0)),
            **fields,
        )


class Driver(Traffic[Simulation]):
    """Chooses operations at random, in favour of crowds, shared prefixes and small pools."""

    def operate(self) -> None:
        """One random operation, then the integrity check."""
        simulation, rng, unfinished = self.simulation, self.rng, self.unfinished
        chance = rng.random()
        if chance < 0.22 and len(unfinished) < 12:
            self.add()
        elif chance < 0.25 and unfinished:
            simulation.abort(rng.choice(unfinished))
        elif chance < 0.27:
            simulation.read_tokens()
        elif chance < 0.275:
            simulation.pool.reset_prefix_cache()
        elif chance < 0.28:
            simulation.scheduler.preempt_all()
        elif chance < 0.285:
            simulation.update_weights()
        else:
            simulation.step()
        simulation.scheduler.check_integrity()

    def add(self) -> None:
        self.send(self.prompt(), [b"", b"", b"a"])


def small_parts(rng: random.Random) -> tuple[SchedulerConfig, PagePool]:
    page_size = rng.choice((1, 2, 3, 4, 8))
    tokens = rng.randint(40, 250)
    config = SchedulerConfig(
        max_num_seqs=rng.choice((2, 4, 8, 16)),
        max_num_batched_tokens=rng.choice((4, 16, 64)),
        max_model_len=100,
        enable_prefix_caching=rng.random() < 0.7,
        policy=rng.choice(("fcfs", "priority")),
    )
    return config, PagePool(1 + max(2, tokens // page_size), page_size)


def small_driver(seed: int) -> Driver:
    rng = random.Random(seed)
    return Driver(Simulation(*small_parts(rng)), rng)


def run(driver: Traffic[S], operations: int) -> S:
    for _ in range(operations):
        driver.operate()
    return driver.simulation


@pytest.mark.parametrize("seed", range(16))
def test_random_traffic(seed: int):
    run(small_driver(seed), 1000).finish()


def test_random_traffic_meets_every_rule():
    """The traffic above would prove little if it never preempted, shared, refused or chunked."""
    preempted = hits = refused = verified = 0
    for seed in range(12):
        simulation = run(small_driver(seed), 300)
        preempted += simulation.scheduler.num_preemptions
        hits += simulation.pool.hit_tokens
        refused += simulation.refused
        verified += simulation.verified
    assert min(preempted, refused) > 10
    assert min(hits, verified) > 100


class TrafficMachine(RuleBasedStateMachine):
    """The same operations chosen by hypothesis, which shrinks what it finds."""

    new_driver: Any
    """Makes a driver from a seed."""

    @initialize(seed=st.integers(0, 10_000))
    def start(self, seed: int) -> None:
        self.driver = self.new_driver(seed)
        self.simulation = self.driver.simulation

    def check(self) -> None:
        self.simulation.scheduler.check_integrity()

    @rule()
    def add(self) -> None:
        self.driver.add()
        self.check()

    @rule(steps=st.integers(1, 5))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.simulation.step()
            self.check()

    @rule()
    def read_tokens(self) -> None:
        self.simulation.read_tokens()
        self.check()

    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        unfinished = [request for request in self.simulation.requests if not request.finished]
        if unfinished:
            self.simulation.abort(data.draw(st.sampled_from(unfinished)))
            self.check()

    def teardown(self) -> None:
        if hasattr(self, "simulation"):
            self.simulation.finish()


MACHINE_SETTINGS = settings(
    max_examples=40, stateful_step_count=40, deadline=None, derandomize=True, database=None
)


class SchedulerMachine(TrafficMachine):
    new_driver = staticmethod(small_driver)

    @rule()
    def update_weights(self) -> None:
        self.simulation.update_weights()
        self.check()


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = MACHINE_SETTINGS
