"""Requests that come at once, over a stand-in for the engine."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import FastAPI

from quire.entrypoints.openai.app import create_app
from quire.entrypoints.openai.service import Service
from quire.entrypoints.openai.turns import Turns

from .conftest import StandIn, make_service, output

Sent = list[dict[str, Any]]


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 60))


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0)


class Client:
    """Posts to `/v1/completions` of an application; its body comes in parts."""

    def __init__(self, app: FastAPI, *parts: bytes, more: bool = False) -> None:
        self.sent: Sent = []
        self._messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        for index, part in enumerate(parts):
            self.add(part, more=more or index < len(parts) - 1)
        self.task = asyncio.create_task(app(scope("POST", "/v1/completions"), self._next, self._on))

    def add(self, part: bytes, *, more: bool = False) -> None:
        message = {"type": "http.request", "body": part, "more_body": more}
        self._messages.put_nowait(message)

    def hang_up(self) -> None:
        self._messages.put_nowait({"type": "http.disconnect"})

    @property
    def status(self) -> int:
        return self.sent[0]["status"]

    async def _next(self) -> dict[str, Any]:
        return await self._messages.get()

    async def _on(self, message: Any) -> None:
        self.sent.append(message)


def scope(method: str, path: str) -> dict[str, Any]:
    headers = [(b"content-type", b"application/json")]
    base = {"type": "http", "method": method, "path": path, "query_string": b""}
    return {**base, "headers": headers}


def body(number: int, **fields: Any) -> bytes:
    return json.dumps({"prompt": [number], "stream": True, **fields}).encode()


def hold(service: Service) -> Callable[[], None]:
    """Keeps every turn from coming until the callable is called."""
    service.turns._taken = True
    return lambda: service.turns._call(asyncio.get_running_loop())


def test_one_has_its_turn_in_each_iteration() -> None:
    seen: list[tuple[int, int]] = []

    async def main() -> None:
        turns, iteration = Turns(), 0

        async def come(number: int) -> None:
            await turns.wait()
            seen.append((number, iteration))

        tasks = [asyncio.create_task(come(number)) for number in range(5)]
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0)
            iteration += 1
        assert len(turns) == 0
        await until(lambda: not turns.taken)

    run(main())
    assert [number for number, _ in seen] == list(range(5))
    assert len({iteration for _, iteration in seen}) == 5


def test_who_leaves_the_line_holds_up_nobody() -> None:
    for moment in range(12):  # of the event loop: before, at and after its turn

        async def main(moment: int = moment) -> None:
            turns, seen = Turns(), list[int]()

            async def come(number: int) -> None:
                await turns.wait()
                seen.append(number)

            tasks = [asyncio.create_task(come(number)) for number in range(6)]
            for _ in range(moment):
                await asyncio.sleep(0)
            tasks[3].cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert [number for number in seen if number != 3] == [0, 1, 2, 4, 5]
            assert (3 in seen) != tasks[3].cancelled()
            await until(lambda: not turns.taken)

        run(main())


def test_requests_begin_in_the_order_they_came(engine: StandIn) -> None:
    async def main() -> None:
        app = create_app(make_service(engine))
        clients = [Client(app, body(number)) for number in range(20)]
        begun: list[int] = []
        while len(engine.prompts) < 20:
            await asyncio.sleep(0)
            begun.append(len(engine.prompts))
        assert [prompt["prompt_token_ids"] for prompt in engine.prompts] == [
            [number] for number in range(20)
        ]
        assert all(after - before <= 1 for before, after in zip(begun, begun[1:], strict=False))
        for queue in list(engine.queues):
            queue.put_nowait(output(1, "stop"))
        await asyncio.gather(*(client.task for client in clients))
        assert {client.status for client in clients} == {200}
        assert all(client.sent[-1]["body"].endswith(b"data: [DONE]\n\n") for client in clients)

    run(main())


def test_a_body_that_comes_slowly_holds_up_nobody(engine: StandIn) -> None:
    async def main() -> None:
        service = make_service(engine)
        app = create_app(service)
        slow = Client(app, body(0)[:5], more=True)
        fast = Client(app, body(1))
        await until(lambda: len(engine.queues) == 1)
        assert len(service.turns) == 0
        slow.add(body(0)[5:])
        await until(lambda: len(engine.queues) == 2)
        assert [prompt["prompt_token_ids"] for prompt in engine.prompts] == [[1], [0]]
        for client in (slow, fast):
            client.hang_up()
            await client.task

    run(main())


def test_who_hangs_up_leaves_the_line(engine: StandIn) -> None:
    async def main() -> None:
        service = make_service(engine)
        app = create_app(service)
        release = hold(service)
        clients = [Client(app, body(number)) for number in range(3)]
        unread = Client(app, body(3)[:5], more=True)
        await until(lambda: len(service.turns) == 3)
        for client in (clients[1], unread):
            client.hang_up()
            await client.task
            assert client.status == 499
        assert len(service.turns) == 2
        release()
        await until(lambda: len(engine.queues) == 2)
        assert [prompt["prompt_token_ids"] for prompt in engine.prompts] == [[0], [2]]
        for client in (clients[0], clients[2]):
            client.hang_up()
            await client.task
        assert not engine.queues

    run(main())


def test_a_full_queue_and_health_are_told_at_once(engine: StandIn) -> None:
    async def main() -> None:
        service = make_service(engine, max_waiting=2)
        app = create_app(service)
        release = hold(service)
        clients = [Client(app, body(number)) for number in range(2)]
        await until(lambda: len(service.turns) == 2)
        refused = Client(app, body(2))
        await refused.task
        assert refused.status == 503
        assert (b"retry-after", b"1") in refused.sent[0]["headers"]
        assert b"2 sequences wait already" in refused.sent[1]["body"]
        assert service.metrics.rejections == 1
        health: Sent = []

        async def send(message: Any) -> None:
            health.append(message)

        await app(scope("GET", "/health"), asyncio.Queue[Any]().get, send)
        assert health[0]["status"] == 200
        release()  # those in the line were promised room
        await until(lambda: len(engine.queues) == 2)
        for client in clients:
            client.hang_up()
            await client.task
        assert service.num_waiting == 0

    run(main())


def test_mistakes_are_told_in_turn(engine: StandIn) -> None:
    async def main() -> None:
        app = create_app(make_service(engine, max_body_bytes=60))
        bodies = [b"{", body(1, unknown=1), b" " * 61, body(2)]
        clients = [Client(app, one) for one in bodies]
        await asyncio.gather(*(client.task for client in clients[:3]))
        assert [client.status for client in clients[:3]] == [400, 400, 413]
        await until(lambda: len(engine.queues) == 1)
        clients[3].hang_up()
        await clients[3].task

    run(main())
