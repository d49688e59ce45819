"""Rows before an engine: how many at once, and an answer to each, whatever it is."""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from ... import EngineClosedError
from .rows import Answer, Form, Row
from .window import Limits

if TYPE_CHECKING:
    from ... import AsyncEngine

T = TypeVar("T")
SEQUENCES = 256
"""That run at once, where the engine was not told otherwise."""
MEDIA_AHEAD = 64
"""Rows asked beyond those that run, of a model that takes media: what is in memory for them."""


def limits(engine: "AsyncEngine") -> Limits:
    """A step should always find others to run, and a long answer not hold up those behind it."""
    running = engine.options.max_num_seqs or SEQUENCES
    ahead = 3 * running if engine.modalities == {"text"} else MEDIA_AHEAD
    return Limits(asked=running + ahead, held=16 * running + ahead)


async def answer(form: Form, row: Row) -> Answer:
    """The answer to a row, whatever it is. Raises EngineClosedError."""
    if row.problem is not None:
        return form.refusal(row, ValueError(row.problem))
    try:
        return await form.answer(row)
    except EngineClosedError:
        raise
    except Exception as error:
        return form.refusal(row, error)


def complete(work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns, on an event loop of its own; Ctrl-C cancels it.

    Where a loop runs in this thread, as in notebooks, another thread has that loop.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    begun: Future[Callable[[], object]] = Future()

    async def main() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None, "a coroutine runs in a task"
        begun.set_result(lambda: loop.call_soon_threadsafe(task.cancel))
        return await work

    with ThreadPoolExecutor(1, "quire-batch") as thread:
        done = thread.submit(asyncio.run, main())
        try:
            return done.result()
        except KeyboardInterrupt:
            begun.result()()
            raise
