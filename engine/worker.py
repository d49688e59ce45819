"""The thread that steps an engine for asyncio, and the way of its outputs to the event loops."""

import asyncio
import contextlib
import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TypeVar

from ..errors import EngineClosedError, OptionError
from .engine import Engine
from .outputs import RequestOutput
from .request import Request
from .sampling_params import RequestOutputKind

T = TypeVar("T")
_REST = 4
"""Times as long as it took an event loop to handle outputs, it takes none."""
_LONGEST_REST = 0.1
"""Seconds, so that a loop that was held up by others does not hold up streams further."""
_SLICE = 32
"""Streams that are told of news before an event loop looks at whatever else it has to do."""
Item = RequestOutput | Exception
"""An exception is the last of a stream."""


@dataclasses.dataclass(eq=False, slots=True)
class Stream:
    """The way of one request's outputs to the coroutine that waits for them.

    Outputs that nobody has taken yet become one, so that a reader who lags costs less, not more.
    """

    request_id: str
    loop: asyncio.AbstractEventLoop
    kind: RequestOutputKind
    done: bool = False
    """Whether nothing more comes, or nobody waits for it."""
    _news: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    _output: RequestOutput | None = None
    _error: Exception | None = None

    def put(self, item: Item) -> None:
        """Takes what comes next. On `loop` alone, as `next`."""
        if isinstance(item, Exception):
            self._error = item
            self.done = True
        else:
            self.done |= item.finished
            if self._output is not None and self.kind is RequestOutputKind.DELTA:
                item = self._output.followed_by(item)
            self._output = item
        self._news.set()

    async def next(self) -> RequestOutput:
        """All that is new; waits for some. Raises the error where none will come."""
        await self._news.wait()
        self._news.clear()
        output, self._output = self._output, None
        if output is not None:
            if self._error is not None:
                self._news.set()
            return output
        assert self._error is not None, "woken for nothing"
        raise self._error


class Receiver:
    """An event loop that takes outputs, and then leaves Python's lock to the steps for a while.

    Many streams keep a loop busy for longer than a step takes; meanwhile outputs pile up and become
    fewer. Few streams notice nothing of it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._items: list[tuple[Stream, Item]] = []
        self._awake = False
        """Whether the loop is going to look for items."""

    def hand(self, items: list[tuple[Stream, Item]]) -> None:
        """From any thread. Raises RuntimeError where the loop was closed."""
        with self._lock:
            self._items += items
            asleep, self._awake = not self._awake, True
        if asleep or self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.take)

    def take(self) -> None:
        """Hands on all there is, slice by slice, and comes again later. On the loop alone."""
        with self._lock:
            items, self._items = self._items, []
            self._awake = bool(items)
        if not items:
            return
        started = time.monotonic()
        news: dict[Stream, list[Item]] = {}
        for stream, item in items:
            news.setdefault(stream, []).append(item)
        self._hand_on(list(news.items()), started)

    def _hand_on(self, news: list[tuple[Stream, list[Item]]], started: float) -> None:
        """A slice now, and the others after those whom it wakes."""
        for stream, items in news[:_SLICE]:
            for item in items:
                stream.put(item)
        if later := news[_SLICE:]:
            self._loop.call_soon(self._hand_on, later, started)
        else:  # after those that have been woken now, and whom they wake
            self._loop.call_soon(self._loop.call_soon, self._rest, started)

    def _rest(self, started: float) -> None:
        busy = time.monotonic() - started
        self._loop.call_later(min(busy * _REST, _LONGEST_REST), self.take)


class Worker:
    """The thread that steps an engine. It alone touches the core, for others between steps."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._core = engine._running.core
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._outbox: list[tuple[Stream, Item]] = []
        self._streams: dict[str, Stream] = {}  # of generators that have not ended, by request id
        self._receivers: dict[asyncio.AbstractEventLoop, Receiver] = {}
        self._closing = False
        self.ended: EngineClosedError | None = None
        """Why it serves no more; None while it does."""
        self._thread = threading.Thread(target=self._serve, name="quire-engine", daemon=True)
        self._thread.start()

    def ask(self, function: Callable[[], T]) -> "Future[T]":
        """Has the thread call `function` before its next step.

        The future raises EngineClosedError if there is none to come.
        """
        future: Future[T] = Future()

        def answer() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                if self.ended is not None:
                    raise _again(self.ended)
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

        self._tell(answer)
        return future

    @contextlib.contextmanager
    def following(self, stream: Stream) -> Iterator[None]:
        """Keeps the stream's id taken, and aborts its request at the end. Raises OptionError."""
        if self._streams.setdefault(stream.request_id, stream) is not stream:
            raise OptionError(
                f"request_id={stream.request_id!r} is the id of a request that runs. Pass another, "
                "or none to have one made up."
            )
        try:
            yield
        finally:
            ended, stream.done = stream.done, True
            if not ended:
                self.ask(lambda: self._core.abort(stream.request_id))
            self._streams.pop(stream.request_id, None)

    def add(self, make: Callable[[], Request], stream: Stream) -> None:
        """Makes a request now, and has it queued, unless nobody waits for it any more.

        Its outputs go to `stream`, and so does what `make` or the queue raises.
        """
        with _telling(stream):
            if not stream.done:
                request = make()
                self._tell(lambda: self._queue(request, stream))

    def _queue(self, request: Request, stream: Stream) -> None:
        with _telling(stream):
            if self.ended is not None:
                raise _again(self.ended)
            if not stream.done:
                self._core.add(request, lambda output: self._outbox.append((stream, output)))

    def close(self) -> None:
        """Stops the thread after the step in hand, and closes the engine."""
        self.ask(self._stop)
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self._engine.close()

    def _serve(self) -> None:
        try:
            while not self._closing:
                self._obey(wait=not self._core.has_work)
                if self._core.has_work:
                    self._engine._step()
                self._deliver()
        except Exception as error:
            self._end(f"the engine stopped after an error ({error!r}). Make a new one.", error)
        else:
            self._end("this engine was closed. Make a new one.", None)

    def _tell(self, function: Callable[[], None]) -> None:
        """Has the thread call `function`, or calls it where that has ended."""
        self._inbox.put(function)
        if self.ended is not None:
            self._obey(wait=False)

    def _obey(self, *, wait: bool) -> None:
        """Does all that was asked; with `wait`, sleeps until there is something."""
        with contextlib.suppress(queue.Empty):
            self._inbox.get(block=wait)()
            while True:
                self._inbox.get_nowait()()

    def _stop(self) -> None:
        self._closing = True

    def _end(self, reason: str, cause: Exception | None) -> None:
        """Tells everybody who waits, or asks from now on, that there is nothing to come."""
        ended = EngineClosedError(reason)
        ended.__cause__ = cause
        self.ended = ended
        self._obey(wait=False)
        self._outbox += [(stream, _again(ended)) for stream in list(self._streams.values())]
        self._deliver()

    def _deliver(self) -> None:
        """Sends what a step gave to the event loops."""
        batches: dict[asyncio.AbstractEventLoop, list[tuple[Stream, Item]]] = {}
        for stream, item in self._outbox:
            batches.setdefault(stream.loop, []).append((stream, item))
        self._outbox.clear()
        for loop, batch in batches.items():
            try:
                self._receiver(loop).hand(batch)
            except RuntimeError:  # the loop was closed, so nobody waits any more
                self._abandon([stream for stream, _ in batch])

    def _receiver(self, loop: asyncio.AbstractEventLoop) -> Receiver:
        if loop not in self._receivers:
            alive = {one: r for one, r in self._receivers.items() if not one.is_closed()}
            self._receivers = {**alive, loop: Receiver(loop)}
        return self._receivers[loop]

    def _abandon(self, streams: list[Stream]) -> None:
        for stream in streams:
            self._streams.pop(stream.request_id, None)
            self._core.abort(stream.request_id)


@contextlib.contextmanager
def _telling(stream: Stream) -> Iterator[None]:
    """Sends an error of the block to the stream."""
    try:
        yield
    except Exception as error:
        with contextlib.suppress(RuntimeError):  # the loop was closed, so nobody waits any more
            stream.loop.call_soon_threadsafe(stream.put, error)


def _again(error: EngineClosedError) -> EngineClosedError:
    """The same error, for one more to raise: a traceback grows with every raise."""
    copy = EngineClosedError(*error.args)
    copy.__cause__ = error.__cause__
    return copy
