"""Work for a client who may hang up."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from quire.entrypoints.openai.streams import ClientGoneError, unless_gone


class Connection:
    """Of a client who has sent all, and may hang up."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self.work_ended = False

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def work(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.work_ended = True


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 60))


def test_what_is_done_in_time_is_the_result() -> None:
    async def main() -> None:
        async def work(fails: bool) -> int:
            await asyncio.sleep(0)
            if fails:
                raise KeyError("x")
            return 7

        connection = Connection()
        assert await unless_gone(connection.receive, work(False)) == 7
        with pytest.raises(KeyError, match="x"):
            await unless_gone(connection.receive, work(True))
        connection.gone.set()  # nobody looks any more
        await asyncio.sleep(0.01)

    run(main())


@pytest.mark.parametrize("at_once", [False, True])
def test_a_hang_up_ends_the_work(at_once: bool) -> None:
    async def main() -> None:
        connection = Connection()
        if at_once:
            connection.gone.set()
        else:
            asyncio.get_running_loop().call_later(0.01, connection.gone.set)
        with pytest.raises(ClientGoneError):
            await unless_gone(connection.receive, connection.work())
        assert connection.work_ended
        await asyncio.sleep(0.01)  # the task goes on as if nobody had cancelled it
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    run(main())


@pytest.mark.parametrize("gone", [False, True])
def test_a_cancellation_is_none_of_a_hang_up(gone: bool) -> None:
    async def main() -> None:
        connection = Connection()
        task = asyncio.create_task(unless_gone(connection.receive, connection.work()))
        await asyncio.sleep(0.01)
        if gone:
            connection.gone.set()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
        assert connection.work_ended

    run(main())
