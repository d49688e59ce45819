"""What sequences share: the prefix cache through the scheduler, where its rules show."""

import types
from typing import Any

import pytest

from quire.engine.adapter_slots import AdapterSlots
from quire.engine.page_pool import PagePool
from quire.engine.request import FinishReason, Request, Sequence
from quire.engine.schedule import Schedule
from quire.engine.scheduler import Scheduler
from quire.engine.scheduler_config import SchedulerConfig


def make(num_pages: int = 100, page_size: int = 4, slots: int = 0, **options: Any) -> Scheduler:
    limits: dict[str, Any] = {
        "max_num_seqs": 8,
        "max_num_batched_tokens": 64,
        "max_model_len": 200,
    } | options
    pool = PagePool(num_pages, page_size)
    return Scheduler(SchedulerConfig(**limits), pool, AdapterSlots(slots))


def adapter(digest: str) -> Any:
    return types.SimpleNamespace(digest=digest) if digest else None


def request(
    arrival: int, prompt: list[int], n: int = 1, params: dict[str, Any] | None = None, **fields: Any
) -> Request:
    max_tokens = fields.pop("max_tokens", 30)
    chosen: Any = types.SimpleNamespace(**({"prompt_logprobs": None} | (params or {})))
    result = Request(f"r{arrival}", None, prompt, chosen, arrival, **fields)
    result.sequences = [
        Sequence(result, i, list(prompt), len(prompt), len(prompt) + max_tokens) for i in range(n)
    ]
    return result


def add(scheduler: Scheduler, arrival: int, prompt: list[int], **fields: Any) -> Sequence:
    added = request(arrival, prompt, **fields)
    scheduler.add(added)
    return added.sequences[0]


def step(scheduler: Scheduler) -> Schedule:
    schedule = scheduler.schedule()
    scheduler.check_integrity()
    assert schedule is not None
    return schedule


def run_alone(scheduler: Scheduler, sequence: Sequence, tokens: list[int]) -> None:
    """Until it has made `tokens`, each read before the next step; then it ends."""
    for token in tokens:
        step(scheduler)
        scheduler.on_token(sequence, token)
    scheduler.finish(sequence, FinishReason.STOP)
    scheduler.check_integrity()


def step_after_token(scheduler: Scheduler, sequence: Sequence) -> Any:
    scheduler.on_token(sequence, 50)
    return step(scheduler).chunks[0]


def test_a_later_request_finds_the_prefix():
    scheduler = make()
    run_alone(scheduler, add(scheduler, 0, list(range(10))), [50])
    found = add(scheduler, 1, [*range(9), 77])
    schedule = step(scheduler)
    chunk = schedule.chunks[0]
    assert (found.cached, chunk.start, chunk.count, chunk.samples) == (8, 8, 2, True)
    assert schedule.new_pages == [(0, index, page) for index, page in enumerate(found.pages)]
    assert (scheduler._pool.hit_tokens, scheduler._pool.queried_tokens) == (8, 20)


def test_sequences_admitted_to_one_step_share():
    scheduler = make()
    first, second = (add(scheduler, arrival, list(range(10))) for arrival in range(2))
    schedule = step(scheduler)
    assert [(c.start, c.count) for c in schedule.chunks] == [(0, 10), (8, 2)]
    assert first.pages[:2] == second.pages[:2]
    assert first.pages[2] != second.pages[2]


def test_a_prompt_cut_by_the_budget_is_shared_as_far_as_it_is_scheduled():
    scheduler = make(max_num_batched_tokens=10)
    add(scheduler, 0, list(range(15)))
    step(scheduler)
    second = add(scheduler, 1, list(range(15)))
    assert [(c.start, c.count) for c in step(scheduler).chunks] == [(10, 5), (12, 3)]
    assert second.cached == 12


@pytest.mark.parametrize(("length", "cached"), [(8, 4), (9, 8), (4, 0), (1, 0)])
def test_at_least_one_token_is_computed(length: int, cached: int):
    scheduler = make()
    run_alone(scheduler, add(scheduler, 0, list(range(20))), [50])
    found = add(scheduler, 1, list(range(length)))
    assert step(scheduler).chunks[0].start == cached == found.cached


def test_one_token_behind_cached_pages_is_a_decode_row():
    scheduler = make()
    run_alone(scheduler, add(scheduler, 0, list(range(9))), [50])
    add(scheduler, 1, list(range(9)))
    schedule = step(scheduler)
    assert schedule.decode_only
    assert len(schedule.new_pages) == 3


@pytest.mark.parametrize("page_size", [1, 4])
@pytest.mark.parametrize("behind", [False, True])
def test_generated_pages_are_found(behind: bool, page_size: int):
    """Whether each token is read before the next step is scheduled, or after."""
    scheduler = make(page_size=page_size)
    writer = add(scheduler, 0, [1, 2])
    step(scheduler)
    for token in range(30, 41):
        if behind:
            step(scheduler)
        scheduler.on_token(writer, token)
        if not behind:
            step(scheduler)
    reader = add(scheduler, 1, [1, 2, *range(30, 41), 5])
    step(scheduler)
    full = 13 // page_size
    assert reader.cached == full * page_size
    assert reader.pages[:full] == writer.pages[:full]


def test_a_page_is_not_found_before_its_last_token_is_known():
    scheduler = make()
    writer = add(scheduler, 0, [1, 2, 3])
    for _ in range(6):
        step(scheduler)
    assert (writer.computed, writer.registered) == (8, 0)
    scheduler.on_token(writer, 4)
    assert writer.registered == 1


def test_a_page_is_not_found_before_its_last_token_is_computed():
    scheduler = make()
    writer = add(scheduler, 0, [1, 2, 3])
    step(scheduler)
    scheduler.on_token(writer, 4)
    assert writer.registered == 0
    reader = add(scheduler, 1, [1, 2, 3, 4, 5])
    step(scheduler)
    assert writer.registered == 1
    assert reader.cached == 4


def test_adapters_separate():
    """By digest, not by name; and no salt passes for a digest."""
    scheduler = make(slots=4)
    for arrival, digest in enumerate(("", "a", "b")):
        sequence = add(scheduler, arrival, list(range(10)), adapter=adapter(digest))
        run_alone(scheduler, sequence, [50])
        assert sequence.cached == 0
    salted = add(scheduler, 3, list(range(10)), salt=b"a")
    run_alone(scheduler, salted, [50])
    found = [
        add(scheduler, 4, list(range(10)), adapter=adapter("a")),
        add(scheduler, 5, list(range(10)), adapter=adapter("a"), salt=b"b"),
        add(scheduler, 6, list(range(10)), adapter=adapter("ab")),
    ]
    step(scheduler)
    assert [salted.cached, *(sequence.cached for sequence in found)] == [0, 8, 0, 0]


def test_the_pages_of_a_forgotten_adapter_are_not_found():
    scheduler = make(slots=1)
    run_alone(scheduler, add(scheduler, 0, list(range(10)), adapter=adapter("a")), [50])
    running = add(scheduler, 1, list(range(14)), adapter=adapter("a"))
    step(scheduler)
    assert running.cached == 8
    scheduler._pool.forget("a")
    for token in range(3):
        scheduler.on_token(running, token)
        step(scheduler)
    late = add(scheduler, 2, list(range(14)), adapter=adapter("a"))
    step(scheduler)
    assert late.cached == 0


def test_salts_separate():
    scheduler = make()
    for arrival, salt in enumerate((b"", b"a", b"b")):
        run_alone(scheduler, add(scheduler, arrival, list(range(10)), salt=salt), [50])
    assert scheduler._pool.hit_tokens == 0
    found = add(scheduler, 3, list(range(10)), salt=b"a")
    step(scheduler)
    assert found.cached == 8


@pytest.mark.parametrize("enabled", [True, False])
def test_the_sequences_of_a_request_share_their_prompt(enabled: bool):
    scheduler = make(enable_prefix_caching=enabled)
    several = request(0, list(range(10)), n=3)
    scheduler.add(several)
    assert step(scheduler).num_tokens == 10 + 2 + 2
    assert len({tuple(s.pages[:2]) for s in several.sequences}) == 1
    assert scheduler._pool.num_free == 99 - 2 - 3


def test_disabled_cache_shares_nothing_between_requests_and_keeps_nothing():
    scheduler = make(enable_prefix_caching=False)
    several, other = (request(arrival, list(range(10)), n=2) for arrival in range(2))
    scheduler.add(several)
    scheduler.add(other)
    step(scheduler)
    assert [s.cached for s in (*several.sequences, *other.sequences)] == [0, 8, 0, 8]
    assert not set(several.sequences[0].pages) & set(other.sequences[0].pages)
    for ended in (several, other):
        scheduler.abort(ended)
    scheduler.check_integrity()
    assert len(scheduler._pool._free) == 99


def test_disabled_cache_hashes_nothing_for_single_sequences():
    scheduler = make(enable_prefix_caching=False)
    sequence = add(scheduler, 0, list(range(10)))
    step(scheduler)
    assert sequence.registered == 0
    assert len(sequence.hashes) == 1


def test_a_prompt_that_must_be_computed_is_computed_once():
    scheduler = make()
    run_alone(scheduler, add(scheduler, 0, list(range(10))), [50])
    several = request(1, list(range(10)), n=2, params={"prompt_logprobs": 0})
    scheduler.add(several)
    schedule = step(scheduler)
    assert [chunk.start for chunk in schedule.chunks] == [0, 8]
    assert [s.cached for s in several.sequences] == [0, 8]


def test_a_prompt_that_was_computed_may_be_read_after_preemption():
    scheduler = make()
    sequence = add(scheduler, 0, list(range(10)), params={"prompt_logprobs": 0})
    step(scheduler)
    scheduler._preempt(sequence)
    assert step_after_token(scheduler, sequence).start == 8
    assert sequence.cached == 0


def test_a_preempted_sequence_finds_its_own_pages():
    scheduler = make()
    sequence = add(scheduler, 0, list(range(10)))
    step(scheduler)
    pages = sequence.pages
    scheduler._preempt(sequence)
    chunk = step_after_token(scheduler, sequence)
    assert (chunk.start, chunk.count) == (8, 3)
    assert sequence.pages[:2] == pages[:2]
    assert scheduler._pool.queried_tokens == 10


def test_a_blocked_sequence_keeps_no_reference():
    scheduler = make(num_pages=12)
    run_alone(scheduler, add(scheduler, 0, list(range(8)), max_tokens=9), [50])
    add(scheduler, 1, list(range(100, 123)), max_tokens=9)
    step(scheduler)
    blocked = add(scheduler, 2, list(range(20)), max_tokens=9)
    schedule = step(scheduler)
    assert blocked not in schedule.admitted
    assert scheduler._pool.num_free == 5


def test_what_was_begun_before_a_reset_is_never_found():
    """Not even the pages it fills later, behind a prefix that was computed again."""
    scheduler = make()
    old = add(scheduler, 0, list(range(8)))
    step(scheduler)
    assert not scheduler._pool.reset_prefix_cache()
    for token in range(8, 13):
        scheduler.on_token(old, token)
        step(scheduler)
    assert old.registered == 3
    fresh = add(scheduler, 1, list(range(8)))
    step(scheduler)
    assert fresh.cached == 0
    reader = add(scheduler, 2, list(range(14)))
    step(scheduler)
    assert reader.cached == 8
    assert reader.pages[:2] == fresh.pages[:2]


def test_all_start_over_when_told():
    scheduler = make()
    sequences = [add(scheduler, arrival, list(range(arrival, 10))) for arrival in range(2)]
    step(scheduler)
    scheduler.preempt_all()
    assert scheduler._pool.reset_prefix_cache()
    assert scheduler.schedule() is None
    for sequence in sequences:
        scheduler.on_token(sequence, 50)
    assert [(c.start, c.count) for c in step(scheduler).chunks] == [(0, 11), (0, 10)]


def test_a_sequence_that_waited_through_a_reset_takes_the_new_root():
    scheduler = make(num_pages=12)
    first = add(scheduler, 0, list(range(24)), max_tokens=9)
    step(scheduler)
    waiting = add(scheduler, 1, list(range(28)), max_tokens=9)
    scheduler._prefixes.find(waiting)
    old_root = waiting.hashes[0]
    scheduler._pool.reset_prefix_cache()
    scheduler.finish(first, FinishReason.STOP)
    step(scheduler)
    assert waiting.cached == 0
    assert waiting.hashes[0] == scheduler._pool.root != old_root
