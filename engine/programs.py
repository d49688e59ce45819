"""Compiles programs ahead of time, in threads, in the order of demand."""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..errors import EngineClosedError
from .buckets import Auxiliary, Encoding, Program

Compiled = Callable[..., Any]
Key = Program | Auxiliary | Encoding
_SOON = 2e-4
"""Seconds."""


@contextlib.contextmanager
def _yielding() -> Iterator[None]:
    """Makes Python hand its lock over soon, since steps go on meanwhile. For one thread at a time.

    A thread that waits for the device takes the lock three times a step, and Python lets it wait
    for 5 ms each time.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SOON)
    soon = sys.getswitchinterval()  # whole microseconds
    try:
        yield
    finally:
        if sys.getswitchinterval() == soon:  # else the program has set it meanwhile
            sys.setswitchinterval(before)


class Programs:
    """The programs of one engine: asked for, waiting, being compiled, ready.

    Lowering holds Python's lock and so runs one at a time; compiling does not, so `workers`
    threads compile side by side. What is needed now goes before what may be needed later.
    """

    def __init__(
        self,
        lower: Callable[[Key], Any],
        planned: Sequence[Key],
        *,
        options: Callable[[Key], dict[str, Any]] = lambda _: {},
        first: int | None = None,
        ahead: bool,
        workers: int,
    ) -> None:
        """`lower` returns a `jax.stages.Lowered`, which is compiled with `options` of its program.

        Args:
            first: how many of the planned ones start now, the rest with `go_on`; None is all.
            ahead: False compiles on demand only.
        """
        self._lower = lower
        self._options = options
        self._lowering = threading.Lock()
        self._changed = threading.Condition()
        ahead_of_time = list(planned) if ahead else []
        self._waiting = ahead_of_time[:first]
        self._later = ahead_of_time[len(self._waiting) :]
        self._running: set[Key] = set()
        self._ready: dict[Key, Compiled] = {}
        self._failed: dict[Key, BaseException] = {}
        self._closed = False
        self.compiled = 0
        """Programs compiled since the start; a test asserts that serving does not raise it."""
        self._threads = [
            threading.Thread(target=self._work, name=f"quire-compile-{i}", daemon=True)
            for i in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def ready(self) -> bool:
        """True once nothing is waiting or being compiled. On demand, that is between demands."""
        with self._changed:
            return self._idle

    def wait(self, timeout: float | None = None) -> bool:
        """Blocks until `ready`; False after `timeout` seconds. Raises what a compile raised."""
        with self._changed:
            done = self._changed.wait_for(
                lambda: self._closed or self._failed or self._idle,
                timeout,
            )
            for error in self._failed.values():
                raise error
            return bool(done)

    def go_on(self) -> None:
        """Compiles the rest of what is planned. Lowering would have slowed the start down."""
        with self._changed:
            known = {*self._waiting, *self._running, *self._ready, *self._failed}
            self._waiting += [program for program in self._later if program not in known]
            self._later.clear()
            self._changed.notify_all()

    @property
    def _idle(self) -> bool:
        return not (self._later or self._waiting or self._running)

    def get(self, needed: Program) -> tuple[Program, Compiled]:
        """`needed`, or the smallest ready program that covers it, or else waits for `needed`."""
        if needed not in self._ready:
            with self._changed:
                covering = [p for p in self._ready if isinstance(p, Program) and p.covers(needed)]
                if needed not in self._ready and covering:
                    self._demand(needed)
                    needed = min(covering, key=lambda p: (p.tokens, not p.decode, p.variant))
        return needed, self.exactly(needed)

    def exactly(self, key: Key) -> Compiled:
        """The program `key`, waiting for it if need be. Raises what its compilation raised."""
        if key in self._ready:
            return self._ready[key]
        with self._changed:
            self._demand(key)
            self._changed.wait_for(
                lambda: key in self._ready or key in self._failed or self._closed
            )
            if key in self._failed:
                raise self._failed[key]
            if key not in self._ready:
                raise EngineClosedError("the engine was closed while a program was compiled.")
            return self._ready[key]

    def close(self) -> None:
        """Drops what waits and blocks until what is being compiled is done.

        Garbage collection may close an engine in any thread. One of these cannot wait for itself;
        then another does, which the end of the process waits for.
        """
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._later.clear()
            self._changed.notify_all()
        if threading.current_thread() in self._threads:
            threading.Thread(target=self._join, name="quire-close", daemon=False).start()
        else:
            self._join()

    def _join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _demand(self, program: Key) -> None:
        known = program in self._running or program in self._ready or program in self._failed
        if known or self._closed:
            return
        if program in self._waiting:
            self._waiting.remove(program)
        self._waiting.insert(0, program)
        self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                program = self._waiting.pop(0)
                self._running.add(program)
            self._compile(program)

    def _compile(self, program: Key) -> None:
        try:
            with self._lowering, _yielding():
                lowered = self._lower(program)
            compiled = lowered.compile(compiler_options=self._options(program) or None)
        except BaseException as error:
            with self._changed:
                self._failed[program] = error
                self._running.discard(program)
                self._changed.notify_all()
            return
        with self._changed:
            self._ready[program] = compiled
            self.compiled += 1
            self._running.discard(program)
            self._changed.notify_all()


class ProgramsOfOne:
    """The programs of one replica, where each was compiled for several."""

    def __init__(self, programs: Programs, index: int) -> None:
        self._programs = programs
        self._index = index

    def get(self, needed: Program) -> tuple[Program, Compiled]:
        """As `Programs.get`."""
        program, compiled = self._programs.get(needed)
        return program, self._own(compiled)

    def exactly(self, key: Key) -> Compiled:
        """As `Programs.exactly`."""
        return self._own(self._programs.exactly(key))

    def _own(self, compiled: Any) -> Compiled:
        return compiled[self._index]
