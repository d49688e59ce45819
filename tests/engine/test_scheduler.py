"""The scheduler's rules one by one. A step here is `schedule`, and `read` tells what it sampled."""

import types
from collections.abc import Callable
from typing import Any

import pytest

from quire.engine.page_pool import PagePool
from quire.engine.request import FinishReason, Request, Sequence
from quire.engine.schedule import Schedule
from quire.engine.scheduler import Scheduler
from quire.engine.scheduler_config import SchedulerConfig
from quire.errors import MemoryBudgetError, OptionError, PromptError


def make(num_pages: int = 100, page_size: int = 4, **options: Any) -> Scheduler:
    limits: dict[str, Any] = {
        "max_num_seqs": 8,
        "max_num_batched_tokens": 64,
        "max_model_len": 200,
    } | options
    return Scheduler(SchedulerConfig(**limits), PagePool(num_pages, page_size))


def request(arrival: int, length: int, max_tokens: int = 50, n: int = 1, **fields: Any) -> Request:
    """A request whose prompt shares no page with that of another arrival."""
    prompt = [1000 * arrival + position for position in range(length)]
    params: Any = types.SimpleNamespace(prompt_logprobs=None)
    result = Request(f"r{arrival}", None, prompt, params, arrival, **fields)
    result.sequences = [
        Sequence(result, index, list(prompt), length, length + max_tokens) for index in range(n)
    ]
    return result


def add(scheduler: Scheduler, arrival: int, length: int, *args: Any, **fields: Any) -> Sequence:
    added = request(arrival, length, *args, **fields)
    scheduler.add(added)
    return added.sequences[0]


def step(scheduler: Scheduler) -> Schedule:
    schedule = scheduler.schedule()
    scheduler.check_integrity()
    assert schedule is not None
    return schedule


def read(scheduler: Scheduler, schedule: Schedule, token: int = 7) -> None:
    for chunk in schedule.chunks:
        if chunk.samples:
            scheduler.on_token(chunk.sequence, token)
    scheduler.check_integrity()


def advance(scheduler: Scheduler, steps: int) -> None:
    for _ in range(steps):
        read(scheduler, step(scheduler))


def plan(schedule: Schedule) -> list[tuple[int, int, int, bool]]:
    return [(c.sequence.request.arrival, c.start, c.count, c.samples) for c in schedule.chunks]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_num_seqs": 0}, "max_num_seqs=0 must be at least 1"),
        ({"max_model_len": 0}, "max_model_len=0"),
        ({"policy": "prioriti"}, "policy='prioriti'.*Did you mean 'priority'"),
    ],
)
def test_config_refuses(options: dict[str, Any], message: str):
    with pytest.raises(OptionError, match=message):
        make(**options)


@pytest.mark.parametrize(
    ("length", "max_tokens", "error", "message"),
    [
        (0, 5, PromptError, "prompt of 0 tokens"),
        (5, 0, PromptError, "prompt of 5 tokens with a limit of 5 tokens"),
        (190, 11, PromptError, "limit of 201 tokens.*max_model_len=200"),
        (
            10,
            31,
            MemoryBudgetError,
            "up to 41 tokens needs 10 KV pages of 4 tokens; the pool has 9",
        ),
    ],
)
def test_add_refuses_what_can_never_run(
    length: int, max_tokens: int, error: type[Exception], message: str
):
    scheduler = make(num_pages=10)
    with pytest.raises(error, match=message):
        scheduler.add(request(0, length, max_tokens, n=2))
    assert not scheduler.has_work


def test_largest_sequence_that_fits_runs_to_its_end():
    scheduler = make(num_pages=10)
    sequence = add(scheduler, 0, 1, 36)
    advance(scheduler, 36)
    assert len(sequence.tokens) == sequence.max_len == 37
    assert scheduler.schedule() is None


def test_no_more_sequences_run_than_a_step_has_tokens():
    scheduler = make(max_num_batched_tokens=2)
    for arrival in range(3):
        add(scheduler, arrival, 1)
    advance(scheduler, 3)
    assert (scheduler.num_running, scheduler.num_waiting) == (2, 1)


def test_prompts_are_cut_to_the_budget():
    scheduler = make(max_num_batched_tokens=8)
    add(scheduler, 0, 20)
    schedules = [step(scheduler) for _ in range(3)]
    assert [plan(s) for s in schedules] == [
        [(0, 0, 8, False)],
        [(0, 8, 8, False)],
        [(0, 16, 4, True)],
    ]
    assert [s.num_tokens for s in schedules] == [8, 8, 4]
    assert not any(s.decode_only for s in schedules)


def test_decode_rows_then_prompts_that_go_on_then_admissions():
    scheduler = make(max_num_batched_tokens=10)
    add(scheduler, 0, 3)
    add(scheduler, 1, 12)
    assert plan(step(scheduler)) == [(0, 0, 3, True), (1, 0, 7, False)]
    add(scheduler, 2, 9)
    assert plan(step(scheduler)) == [(0, 3, 1, True), (1, 7, 5, True), (2, 0, 4, False)]
    schedule = step(scheduler)
    assert plan(schedule) == [(0, 4, 1, True), (1, 12, 1, True), (2, 4, 5, True)]
    assert schedule.num_tokens == 7


def test_decode_only_needs_one_sampling_token_a_chunk():
    scheduler = make(max_num_batched_tokens=2)
    add(scheduler, 0, 1)
    assert step(scheduler).decode_only
    add(scheduler, 1, 3)
    schedule = step(scheduler)
    assert plan(schedule) == [(0, 1, 1, True), (1, 0, 1, False)]
    assert not schedule.decode_only


def test_new_pages_fill_the_page_table():
    scheduler = make()
    sequence = add(scheduler, 0, 7)
    schedule = step(scheduler)
    assert schedule.admitted == [sequence]
    assert schedule.new_pages == [(0, 0, sequence.pages[0]), (0, 1, sequence.pages[1])]
    assert step(scheduler).new_pages == []
    assert step(scheduler).new_pages == [(0, 2, sequence.pages[2])]


def test_smallest_free_slot_first():
    scheduler = make()
    sequences = [add(scheduler, arrival, 3) for arrival in range(4)]
    step(scheduler)
    assert [s.slot for s in sequences] == [0, 1, 2, 3]
    scheduler.finish(sequences[2], FinishReason.STOP)
    scheduler.finish(sequences[0], FinishReason.STOP)
    late = [add(scheduler, arrival, 3) for arrival in (4, 5)]
    step(scheduler)
    assert [s.slot for s in late] == [0, 2]


def test_schedules_over_tokens_that_are_not_known_yet():
    scheduler = make()
    sequence = add(scheduler, 0, 3)
    first, second = step(scheduler), step(scheduler)
    assert plan(second) == [(0, 3, 1, True)]
    assert (sequence.computed, sequence.pending, len(sequence.tokens)) == (4, 2, 3)
    read(scheduler, first, 70)
    read(scheduler, second, 71)
    assert (sequence.pending, sequence.tokens[3:]) == (0, [70, 71])


def test_nothing_is_scheduled_beyond_the_length_limit():
    scheduler = make()
    sequence = add(scheduler, 0, 3, 2)
    schedules = [step(scheduler), step(scheduler)]
    assert scheduler.schedule() is None
    assert scheduler.has_work
    for schedule in schedules:
        read(scheduler, schedule)
    scheduler.finish(sequence, FinishReason.LENGTH)
    assert not scheduler.has_work


def test_a_sequence_that_waits_for_its_token_sits_out():
    scheduler = make()
    sequence = add(scheduler, 0, 3)
    add(scheduler, 1, 3)
    sequence.waits_for_token = True
    first = step(scheduler)
    assert plan(step(scheduler)) == [(1, 3, 1, True)]
    read(scheduler, first)
    assert plan(step(scheduler)) == [(0, 3, 1, True), (1, 4, 1, True)]


def test_finish_frees_pages_and_slot_at_once():
    scheduler = make(num_pages=4)
    sequence = add(scheduler, 0, 9, 3)
    schedule = step(scheduler)
    scheduler.finish(sequence, FinishReason.STOP, "end")
    assert (sequence.slot, sequence.pages, sequence.stop_reason) == (-1, [], "end")
    add(scheduler, 1, 9, 3)
    assert plan(step(scheduler)) == [(1, 0, 9, True)]
    read(scheduler, schedule)
    assert len(sequence.tokens) == 9


def test_a_second_end_changes_nothing():
    scheduler = make()
    sequence = add(scheduler, 0, 3)
    scheduler.finish(sequence, FinishReason.STOP, 5)
    scheduler.finish(sequence, FinishReason.ABORT)
    assert (sequence.finish_reason, sequence.stop_reason) == (FinishReason.STOP, 5)


def test_abort_ends_what_runs_and_what_waits():
    scheduler = make(max_num_seqs=2)
    aborted, other = request(0, 3, n=3), request(1, 3)
    scheduler.add(aborted)
    scheduler.add(other)
    step(scheduler)
    scheduler.abort(aborted)
    scheduler.check_integrity()
    assert {s.finish_reason for s in aborted.sequences} == {FinishReason.ABORT}
    assert (scheduler.num_running, scheduler.num_waiting) == (0, 1)
    assert plan(step(scheduler)) == [(1, 0, 3, True)]


def test_the_head_blocks_those_behind_it():
    scheduler = make(num_pages=10)
    add(scheduler, 0, 20, 4)
    step(scheduler)
    add(scheduler, 1, 20, 4)
    add(scheduler, 2, 1, 4)
    assert plan(step(scheduler)) == [(0, 20, 1, True)]


@pytest.mark.parametrize(("policy", "order"), [("fcfs", [0, 1, 2]), ("priority", [1, 2, 0])])
def test_admits_in_order_of_policy(policy: str, order: list[int]):
    scheduler = make(policy=policy)
    for arrival, priority in enumerate((5, -1, 0)):
        add(scheduler, arrival, 3, priority=priority)
    assert [chunk[0] for chunk in plan(step(scheduler))] == order


def test_admission_leaves_a_page_for_each_row_that_runs():
    scheduler = make(num_pages=8)
    for arrival in range(3):
        add(scheduler, arrival, 8, 4)
    assert plan(step(scheduler)) == [(0, 0, 8, True), (1, 0, 8, True)]
    assert scheduler.num_waiting == 1


def test_admission_leaves_one_page_in_a_hundred():
    scheduler = make(num_pages=401, max_num_batched_tokens=2000, max_model_len=2000)
    add(scheduler, 0, 998, 4)
    add(scheduler, 1, 147 * 4, 4)
    assert len(step(scheduler).chunks) == 1
    scheduler.abort(next(iter(scheduler._waiting)).request)
    add(scheduler, 2, 146 * 4, 4)
    assert len(step(scheduler).chunks) == 2


def test_the_reserve_does_not_bind_when_nothing_runs():
    scheduler = make(num_pages=401, max_num_batched_tokens=2000, max_model_len=2000)
    add(scheduler, 0, 1600, 1)
    assert plan(step(scheduler)) == [(0, 0, 1600, True)]


@pytest.mark.parametrize(("policy", "victim"), [("fcfs", 2), ("priority", 0)])
def test_preempts_the_last_in_order(policy: str, victim: int):
    scheduler = make(num_pages=7, policy=policy)
    sequences = [add(scheduler, a, 4, 20, priority=-a) for a in range(3)]
    advance(scheduler, 5)
    schedule = step(scheduler)
    assert schedule.preempted == [sequences[victim]]
    assert sorted(chunk[0] for chunk in plan(schedule)) == [a for a in range(3) if a != victim]
    assert all(slot != sequences[victim].slot for slot, _, _ in schedule.new_pages)
    assert sequences[victim].slot == -1
    assert sequences[victim].preemptions == scheduler.num_preemptions == 1


def two_that_outgrow(scheduler: Scheduler) -> tuple[Sequence, Sequence, Schedule, Schedule]:
    """Two sequences, one step behind, until the second is preempted; a third comes just before.

    Returns both, the schedule that is still to be read, and the one that preempted.
    """
    old, young = add(scheduler, 0, 4, 20), add(scheduler, 1, 4, 20)
    in_flight, schedule = step(scheduler), step(scheduler)
    while not schedule.preempted:
        if scheduler._pool.num_free == 1 and not scheduler.num_waiting:
            add(scheduler, 2, 1, 4)
        read(scheduler, in_flight)
        in_flight, schedule = schedule, step(scheduler)
    assert schedule.preempted == [young]
    return old, young, in_flight, schedule


def test_a_preempted_sequence_keeps_its_pending_token():
    scheduler = make(num_pages=8)
    old, young, in_flight, schedule = two_that_outgrow(scheduler)
    assert plan(schedule) == [(0, old.computed - 1, 1, True)]
    known = len(young.tokens)
    assert young.pending == 1
    read(scheduler, in_flight, 99)
    assert (young.pending, young.computed, young.slot) == (0, 0, -1)
    assert young.tokens[known:] == [99]


def test_a_preempted_sequence_waits_for_its_pending_token():
    scheduler = make(num_pages=8)
    old, young, in_flight, schedule = two_that_outgrow(scheduler)
    scheduler.finish(old, FinishReason.STOP)
    assert young not in step(scheduler).admitted
    read(scheduler, in_flight)
    schedule = step(scheduler)
    assert schedule.admitted == [young]
    assert schedule.chunks[-1].start + schedule.chunks[-1].count == len(young.tokens)


def test_nothing_is_admitted_in_a_step_that_preempts():
    scheduler = make(num_pages=8)
    _, _, _, schedule = two_that_outgrow(scheduler)
    assert scheduler._pool.num_free > scheduler.num_running
    assert schedule.admitted == []
    assert [chunk[0] for chunk in plan(step(scheduler))] == [0, 2]


def test_a_preempted_sequence_comes_back_only_with_room_for_all_its_tokens():
    scheduler = make(num_pages=10, max_num_batched_tokens=4, enable_prefix_caching=False)
    old, young = add(scheduler, 0, 12, 24), add(scheduler, 1, 12, 24)
    while not young.preemptions:
        advance(scheduler, 1)
    needed = -(-len(young.tokens) // 4)
    assert scheduler._pool.num_free < needed + 1
    assert step(scheduler).admitted == []
    scheduler.finish(old, FinishReason.STOP)
    assert step(scheduler).admitted == [young]


def test_a_prompt_that_goes_on_preempts_a_row_already_placed():
    scheduler = make(num_pages=10, max_num_batched_tokens=16, policy="priority")
    low = add(scheduler, 1, 12, 10, priority=1)
    first = step(scheduler)
    high = add(scheduler, 2, 34, 2)
    step(scheduler)
    assert high.computed == 15
    read(scheduler, first)
    schedule = step(scheduler)
    assert schedule.preempted == [low]
    assert plan(schedule) == [(2, 15, 15, False)]
    assert schedule.num_tokens == 15
    assert low.pending == 1


def test_a_sequence_may_preempt_itself():
    scheduler = make(num_pages=9, max_num_batched_tokens=10)
    add(scheduler, 0, 9, 12)
    late = add(scheduler, 1, 26, 4)
    first = schedule = step(scheduler)
    while not late.preemptions:
        schedule = step(scheduler)
    assert schedule.preempted == [late]
    assert [chunk[0] for chunk in plan(schedule)] == [0]
    read(scheduler, first)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s, a, b: s._free_slots.append(0), "slots lost or owned twice"),
        (lambda s, a, b: a.pages.append(9), "do not add up"),
        (lambda s, a, b: setattr(a, "computed", 5), "pages do not match tokens computed"),
        (lambda s, a, b: setattr(a, "pending", 0), "computed beyond its tokens"),
        (lambda s, a, b: setattr(a, "finish_reason", FinishReason.STOP), "finished sequence runs"),
        (lambda s, a, b: setattr(b, "finish_reason", FinishReason.STOP), "finished sequence waits"),
        (lambda s, a, b: setattr(b, "computed", 1), "waiting sequence holds pages"),
        (lambda s, a, b: s._waiting._lines[""].reverse(), "out of order"),
    ],
)
def test_check_integrity_sees_damage(damage: Callable[..., object], message: str):
    scheduler = make(max_num_seqs=1)
    runs, waits = add(scheduler, 0, 4), add(scheduler, 1, 4)
    add(scheduler, 2, 4)
    step(scheduler)
    damage(scheduler, runs, waits)
    with pytest.raises(AssertionError, match=message):
        scheduler.check_integrity()
