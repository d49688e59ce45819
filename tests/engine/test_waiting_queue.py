import random
from typing import Any

import pytest

from quire.engine.request import Request, Sequence
from quire.engine.waiting_queue import WaitingQueue


def waiting(arrival: int, adapter: str = "", n: int = 1) -> list[Sequence]:
    given: Any = type("Adapter", (), {"digest": adapter})() if adapter else None
    params: Any = None
    request = Request(f"r{arrival}", None, [1], params, arrival, adapter=given)
    return [Sequence(request, index, [1], 1, 9) for index in range(n)]


def queue_of(*sequences: Sequence) -> WaitingQueue:
    queue = WaitingQueue(lambda s: (s.request.arrival, s.index))
    for sequence in sequences:
        queue.add(sequence)
    queue.check_integrity()
    return queue


def test_lines_are_walked_in_order():
    sequences = [s for arrival in range(12) for s in waiting(arrival, "ab"[: arrival % 3], n=2)]
    shuffled = random.Random(0).sample(sequences, len(sequences))
    queue = queue_of(*shuffled)
    assert list(queue) == sequences
    assert len(queue) == 24
    for sequence in shuffled:
        queue.remove(sequence)
        queue.check_integrity()
    assert not queue
    assert list(queue) == []


def test_a_line_that_is_closed_meanwhile_is_left():
    sequences = [s for arrival in range(6) for s in waiting(arrival, "ab"[arrival % 2])]
    closed: set[str] = set()
    seen = []
    for sequence in queue_of(*sequences).walk(closed):
        seen.append(sequence)
        if len(seen) == 3:
            closed.add("a")
    assert seen == [*sequences[:4], sequences[5]]


def test_a_closed_line_is_not_walked():
    sequences = [s for arrival in range(3) for s in waiting(arrival, "a")]
    visited: list[int] = []

    class Closed(set[str]):
        def __contains__(self, name: object) -> bool:
            visited.append(1)
            return True

    assert list(queue_of(*sequences).walk(Closed())) == []
    assert len(visited) == 1


def test_what_does_not_wait_cannot_be_removed():
    (first,), (second,) = waiting(0), waiting(1)
    queue = queue_of(first, second)
    second.request.arrival = 0
    with pytest.raises(AssertionError, match="not in its place"):
        queue.remove(second)


def test_check_integrity_sees_damage():
    (first,), (second,) = waiting(0), waiting(1)
    queue = queue_of(first, second)
    first.request.arrival = 2
    with pytest.raises(AssertionError, match="out of order"):
        queue.check_integrity()
    first.request.arrival = 0
    first.request.adapter = waiting(0, "a")[0].request.adapter
    with pytest.raises(AssertionError, match="line not their own"):
        queue.check_integrity()
