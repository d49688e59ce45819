"""Prompts of one call on their way to the queue, with threads that do what a test tells them to."""

import threading
import types
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from quire.engine import incoming
from quire.engine.incoming import Incoming
from quire.engine.prompts import Prompt
from quire.engine.reading import Reading
from quire.errors import PromptError


class ByHand:
    """An executor whose jobs are done when a test says so."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Any, Future[Prompt]]] = []

    def submit(self, job: Any) -> Future[Prompt]:
        future: Future[Prompt] = Future()
        self.jobs.append((job, future))
        return future

    def run(self, number: int) -> None:
        job, future = self.jobs[number]
        try:
            future.set_result(job())
        except PromptError as error:
            future.set_exception(error)


def prompts(count: int) -> list[Any]:
    return [lambda number=number: Prompt(str(number), [number]) for number in range(count)]


def request(index: int, prompt: Prompt) -> Any:
    return types.SimpleNamespace(
        index=index, text=prompt.text, prepared=True, wait_for_media=lambda: None
    )


def taken(queue: Incoming, queued: int = 0) -> list[str]:
    found = []
    while (one := queue.next(queued)) is not None:
        found.append(text(one))
    return found


def text(made: Any) -> str:
    return made.text


def test_prompts_of_text_are_all_read_before_the_first_is_queued() -> None:
    queue = Incoming(Reading(prompts(100), None), request)
    assert len(queue.made) == 100
    assert taken(queue, queued=10**6) == [str(number) for number in range(100)]


def test_prompts_with_media_come_in_order_as_they_are_read() -> None:
    threads: Any = ByHand()
    queue = Incoming(Reading(prompts(4), threads), request)
    threads.run(1)
    assert taken(queue) == []
    threads.run(0)
    assert taken(queue) == ["0", "1"]
    threads.run(3)
    threads.run(2)
    assert taken(queue) == ["2", "3"]
    assert [*map(text, queue.made)] == ["0", "1", "2", "3"]


def test_only_a_few_are_read_ahead() -> None:
    threads: Any = ByHand()
    queue = Incoming(Reading(prompts(100), threads), request)
    assert len(threads.jobs) == incoming._AHEAD
    threads.run(0)
    assert taken(queue) == ["0"]
    assert len(threads.jobs) == incoming._AHEAD + 1


def test_a_long_queue_is_not_made_longer() -> None:
    threads: Any = ByHand()
    queue = Incoming(Reading(prompts(2), threads), request)
    threads.run(0)
    assert taken(queue, queued=incoming._QUEUED) == []
    assert taken(queue, queued=incoming._QUEUED - 1) == ["0"]


def test_waits_for_the_next_one_to_be_prepared() -> None:
    prepared = threading.Event()

    def make(index: int, prompt: Prompt) -> Any:
        made = request(index, prompt)
        made.prepared, made.wait_for_media = False, prepared.set
        return made

    with ThreadPoolExecutor(1) as threads:
        queue = Incoming(Reading(prompts(1), threads), make)
        queue.wait()
        assert prepared.is_set()
        assert queue.next(0) is None
        made: Any = queue.made[0]
        made.prepared = True
        assert taken(queue) == ["0"]
        queue.wait()  # for none


def test_what_reading_raises_comes_in_its_turn() -> None:
    def fails() -> Prompt:
        raise PromptError("no such picture")

    threads: Any = ByHand()
    queue = Incoming(Reading([*prompts(1), fails], threads), request)
    threads.run(1)
    threads.run(0)
    assert queue.next(0) is queue.made[0]
    with pytest.raises(PromptError, match="no such picture"):
        queue.next(0)


def test_cancelled_reads_no_more() -> None:
    threads: Any = ByHand()
    queue = Incoming(Reading(prompts(3), threads), request)
    queue.cancel()
    assert all(future.cancelled() for _, future in threads.jobs)
