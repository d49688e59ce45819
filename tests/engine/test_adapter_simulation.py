"""Random traffic with adapters: load, use, unload, abort and preempt, in any order.

The simulated device computes a row with what was last written to its adapter slot, so what a token
attends to shows whether all of it was computed with the adapter of its request.
"""

import random
import types
import zlib
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import rule

from quire.engine.adapter_slots import AdapterSlots
from quire.engine.page_pool import PagePool
from quire.engine.request import FinishReason, Sequence
from quire.engine.schedule import Schedule
from quire.engine.scheduler import Scheduler
from quire.engine.scheduler_config import SchedulerConfig
from tests.engine.test_scheduler_simulation import (
    MACHINE_SETTINGS,
    Device,
    Simulation,
    Traffic,
    TrafficMachine,
    run,
    small_parts,
)

NAMES = 5


def weights_of(digest: str) -> int:
    """What the device computes with, for an adapter or for the model alone."""
    return zlib.crc32(digest.encode())


class AdapterDevice(Device):
    """Has slots for adapters."""

    def __init__(self, page_size: int) -> None:
        super().__init__(page_size)
        self.adapters: dict[int, str] = {-1: ""}

    def run(self, schedule: Schedule, stale: set[Sequence]) -> list[tuple[Sequence, int]]:
        written = [slot for slot, _ in schedule.loads]
        assert len(written) == len(set(written))
        self.adapters.update((slot, adapter.digest) for slot, adapter in schedule.loads)
        return super().run(schedule, stale)

    def write(self, sequence: Sequence, start: int, count: int, written: set) -> None:
        self.weights = weights_of(self.adapters[sequence.adapter_slot])
        super().write(sequence, start, count, written)

    def check_attended(self, sequence: Sequence, end: int) -> None:
        self.weights = weights_of(sequence.request.adapter_digest)
        super().check_attended(sequence, end)


class AdapterSimulation(Simulation):
    """A small engine with a few slots for adapters."""

    def __init__(self, config: SchedulerConfig, pool: PagePool, slots: AdapterSlots) -> None:
        super().__init__(config, pool)
        self.slots = slots
        self.scheduler = Scheduler(config, pool, slots)
        self.device: AdapterDevice = AdapterDevice(pool.page_size)
        self.known: dict[int, str] = {}
        self.versions = 0
        self.loads = 0
        self.waited = 0
        self.forgotten_pages = 0
        self.admissions: dict[str, list[tuple[int, int]]] = {}

    def load(self, name: int, twin: int | None = None) -> None:
        """Makes an adapter known, or replaces it; that of `twin`, if known, has equal contents."""
        self.unload(name)
        self.versions += 1
        new = zlib.crc32(bytes([self.versions % 7])).to_bytes(4, "big").hex()  # some come back
        self.known[name] = self.known.get(name if twin is None else twin, new)

    def unload(self, name: int) -> None:
        digest = self.known.pop(name, None)
        if digest is None:
            return
        before = self.pool.num_free
        self.forgotten_pages += len(self.pool._owned.get(digest, ()))
        self.slots.forget(digest)
        self.pool.forget(digest)
        assert self.pool.num_free == before
        assert digest not in self.pool._owners.values()
        used = {s.adapter_slot for s in self.scheduler._running if s.request.adapter}
        assert self.slots._slots.get(digest) in {None, *used}

    def check_schedule(self, schedule: Schedule, free_slots: int) -> None:
        self.loads += len(schedule.loads)
        self.waited += any(s.request.adapter for s in self.scheduler._waiting)
        assert {slot for slot, _ in schedule.loads} <= {s.adapter_slot for s in schedule.admitted}
        self.first_admissions = []  # only those of the same step must be in order
        super().check_schedule(schedule, free_slots)
        for sequence in schedule.admitted:
            line = self.admissions.setdefault(sequence.request.adapter_digest, [])
            if not sequence.preemptions:
                line.append((sequence.request.arrival, sequence.index))
            if self.config.policy == "fcfs":
                assert line == sorted(line)

    def end(self, sequence: Sequence, reason: FinishReason) -> None:
        self.device.weights = weights_of(sequence.request.adapter_digest)
        super().end(sequence, reason)

    def finish(self) -> None:
        super().finish()
        self.slots.check_integrity([])


class Driver(Traffic[AdapterSimulation]):
    """Chooses operations at random, in favour of crowds, shared prefixes and few slots."""

    def operate(self) -> None:
        """One random operation, then the integrity check."""
        simulation, rng, unfinished = self.simulation, self.rng, self.unfinished
        chance = rng.random()
        if chance < 0.25 and len(unfinished) < 12:
            self.add()
        elif chance < 0.28 and unfinished:
            simulation.abort(rng.choice(unfinished))
        elif chance < 0.31:
            simulation.load(rng.randrange(NAMES), rng.choice((None, None, 0)))
        elif chance < 0.34:
            simulation.unload(rng.randrange(NAMES))
        elif chance < 0.35:
            simulation.read_tokens()
        elif chance < 0.355:
            simulation.pool.reset_prefix_cache()
        elif chance < 0.365:
            simulation.scheduler.preempt_all()
        else:
            simulation.step()
        simulation.scheduler.check_integrity()

    def add(self) -> None:
        simulation, prompt = self.simulation, self.prompt()
        name = self.rng.randrange(-1, NAMES)
        if name >= 0 and name not in simulation.known:
            simulation.load(name)
        adapter: Any = None
        if name >= 0:
            adapter = types.SimpleNamespace(digest=simulation.known[name])
        salts = [b"", b"", b"a", *(digest.encode() for digest in simulation.known.values())]
        self.send(prompt, salts, adapter=adapter)


def small_driver(seed: int) -> Driver:
    rng = random.Random(seed)
    config, pool = small_parts(rng)
    slots = AdapterSlots(rng.choice((1, 1, 2, 3, 8)), tenure=rng.choice((0, 3, 20)))
    return Driver(AdapterSimulation(config, pool, slots), rng)


@pytest.mark.parametrize("seed", range(16))
def test_random_traffic(seed: int):
    run(small_driver(seed), 1000).finish()


def test_random_traffic_meets_every_rule():
    """The traffic above would prove little if it never shared, waited, preempted or forgot."""
    simulations = [run(small_driver(seed), 300) for seed in range(12)]
    assert sum(s.scheduler.num_preemptions for s in simulations) > 10
    assert sum(s.pool.hit_tokens for s in simulations) > 100
    assert sum(s.verified for s in simulations) > 100
    assert sum(s.loads for s in simulations) > 100
    assert sum(s.waited for s in simulations) > 100
    assert sum(s.forgotten_pages for s in simulations) > 100


class AdapterMachine(TrafficMachine):
    new_driver = staticmethod(small_driver)

    @rule(name=st.integers(0, NAMES - 1), twin=st.one_of(st.none(), st.integers(0, NAMES - 1)))
    def load(self, name: int, twin: int | None) -> None:
        self.simulation.load(name, twin)
        self.check()

    @rule(name=st.integers(0, NAMES - 1))
    def unload(self, name: int) -> None:
        self.simulation.unload(name)
        self.check()

    @rule()
    def preempt(self) -> None:
        self.simulation.scheduler.preempt_all()
        self.check()


TestAdapterMachine = AdapterMachine.TestCase
TestAdapterMachine.settings = MACHINE_SETTINGS
