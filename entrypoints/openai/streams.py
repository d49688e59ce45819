"""Outputs of the engine on their way to a client: merged, watched for hang-ups, sent as events."""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, Coroutine, Iterable, Sequence
from typing import Any, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ... import RequestOutput
from .errors import as_api_error, error_body

logger = logging.getLogger(__name__)

T = TypeVar("T")
DONE = b"data: [DONE]\n\n"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""Proxies shall pass events on as they come."""
CLIENT_GONE = 499
"""The status in logs of an answer that nobody waited for."""
_ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class ClientGoneError(Exception):
    """The client hung up."""


class Outputs(Protocol):
    """The outputs of requests, as they come, on one event loop."""

    async def take(self) -> dict[int, RequestOutput]:
        """What is new, by the number of the request; waits for some. {} is the end.

        Raises what a generator raised, after all outputs that came before.
        """
        ...

    def check(self) -> None:
        """Raises what a generator raised so far."""
        ...

    async def close(self) -> None:
        """Aborts what still runs."""
        ...


class _Single:
    """Those of one request, without a task in between."""

    def __init__(self, generator: AsyncGenerator[RequestOutput, None]) -> None:
        self._generator = generator

    async def take(self) -> dict[int, RequestOutput]:
        output = await anext(self._generator, None)
        return {} if output is None else {0: output}

    def check(self) -> None:
        """Raises nothing: `take` has."""

    async def close(self) -> None:
        await self._generator.aclose()


class _Several:
    """Those of several requests.

    Those that pile up while nobody takes them are joined, so that a slow reader costs no more
    than their tokens. Every request begins to run at once.
    """

    def __init__(self, generators: Sequence[AsyncGenerator[RequestOutput, None]]) -> None:
        self._news = asyncio.Event()
        self._waiting: dict[int, RequestOutput] = {}
        self._error: Exception | None = None
        self._open = len(generators)
        self._tasks = [
            asyncio.create_task(self._follow(index, generator))
            for index, generator in enumerate(generators)
        ]

    async def take(self) -> dict[int, RequestOutput]:
        await self._news.wait()
        self._news.clear()
        taken, self._waiting = self._waiting, {}
        if self._open == 0 or self._error is not None:
            self._news.set()
        if not taken:
            self.check()
        return taken

    def check(self) -> None:
        if self._error is not None:
            raise self._error

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _follow(self, index: int, generator: AsyncGenerator[RequestOutput, None]) -> None:
        try:
            async with contextlib.aclosing(generator):
                async for output in generator:
                    earlier = self._waiting.get(index)
                    self._waiting[index] = earlier.followed_by(output) if earlier else output
                    self._news.set()
        except Exception as error:
            self._error = self._error or error
        finally:
            self._open -= 1
            self._news.set()


def outputs_of(generators: Sequence[AsyncGenerator[RequestOutput, None]]) -> Outputs:
    """Takes generators of DELTA or FINAL_ONLY outputs, and closes them in the end."""
    return _Single(generators[0]) if len(generators) == 1 else _Several(generators)


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; cancels it and raises ClientGoneError once the client hangs up."""
    task = asyncio.current_task()
    assert task is not None, "a coroutine runs in a task"
    working, left = True, False

    def leave(_: object) -> None:
        nonlocal left
        if working:
            left = task.cancel()

    gone = asyncio.ensure_future(_hang_up(receive))
    gone.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if left and task.uncancel() == 0:  # nobody else cancelled it
            raise ClientGoneError from None
        raise
    finally:
        working = False
        gone.cancel()


async def _hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def answer_nobody(_request: Request, _error: Exception) -> Response:
    """The handler of ClientGoneError."""
    return Response(status_code=CLIENT_GONE)


async def last_outputs(
    generators: Sequence[AsyncGenerator[RequestOutput, None]],
) -> list[RequestOutput]:
    """The output of each generator of FINAL_ONLY outputs. All are aborted where one fails."""
    outputs = outputs_of(generators)
    found: dict[int, RequestOutput] = {}
    try:
        while taken := await outputs.take():
            found.update(taken)
    finally:
        await outputs.close()
    return [found[index] for index in range(len(generators))]


class Chunks(Protocol):
    """Makes the chunks of a stream."""

    def start(self) -> Iterable[dict[str, Any]]:
        """Those before any output."""
        ...

    def of(self, index: int, output: RequestOutput) -> Iterable[dict[str, Any]]:
        """Those of what is new of request `index`."""
        ...

    def end(self) -> Iterable[dict[str, Any]]:
        """Those after all outputs."""
        ...


class EventStream(Response):
    """Chunks as server-sent events, up to `[DONE]`. Ends the requests when the client hangs up.

    It begins when there is something to send. Raises what fails before that, and ClientGoneError.
    """

    media_type = "text/event-stream"

    def __init__(
        self, generators: Sequence[AsyncGenerator[RequestOutput, None]], chunks: Chunks
    ) -> None:
        """Takes generators of DELTA outputs, and closes them in the end."""
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._generators = generators
        self._chunks = chunks
        self._begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        outputs = outputs_of(self._generators)
        try:
            await unless_gone(receive, self._send(outputs, send))
        except (ClientGoneError, OSError):
            if not self._begun:
                raise
        finally:
            await outputs.close()

    async def _send(self, outputs: Outputs, send: Send) -> None:
        first = await outputs.take()
        outputs.check()
        self._begun = True
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        async for body, more in self._bodies(first, outputs):
            await send({"type": "http.response.body", "body": body, "more_body": more})

    async def _bodies(
        self, taken: dict[int, RequestOutput], outputs: Outputs
    ) -> AsyncGenerator[tuple[bytes, bool], None]:
        """What to send next, of all that there is by then, and whether there will be more."""
        try:
            if events := _encoded(self._chunks.start()):
                yield events, True
            while taken:
                for index, output in taken.items():
                    if events := _encoded(self._chunks.of(index, output)):
                        yield events, True
                taken = await outputs.take()
            yield _encoded(self._chunks.end()) + DONE, False
        except Exception as error:
            told = as_api_error(error)
            if told.status >= 500:
                logger.exception("a stream broke off")
            yield _encoded([error_body(told)]) + DONE, False


def _encoded(chunks: Iterable[dict[str, Any]]) -> bytes:
    return "".join(f"data: {dumped(chunk)}\n\n" for chunk in chunks).encode("utf-8", "replace")


def dumped(content: object) -> str:
    """Compact JSON."""
    return _ENCODE(content)


def json_response(content: object) -> Response:
    """A whole answer."""
    body = dumped(content).encode("utf-8", "replace")
    return Response(body, media_type="application/json")
