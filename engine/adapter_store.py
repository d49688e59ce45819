"""The adapters that host memory holds: read once, shared by all threads, and limited in number."""

import dataclasses
import logging
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, wait
from typing import Generic, Protocol, TypeVar

from ..errors import OptionError
from ..lora.request import LoRARequest

logger = logging.getLogger(__name__)


class Loaded(Protocol):
    """What the store needs to know of an adapter."""

    @property
    def digest(self) -> str:
        """Equal for adapters with equal effect."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of host memory."""
        ...


A = TypeVar("A", bound=Loaded)


@dataclasses.dataclass(frozen=True)
class Removed:
    """What is left to know of an adapter that was removed."""

    request: LoRARequest
    digest: str


@dataclasses.dataclass(eq=False)
class _Entry(Generic[A]):
    request: LoRARequest
    digest: str = ""
    """Empty before the first load is done; until then the adapter does not count as known."""
    kept: A | None = None
    alive: Callable[[], A | None] = lambda: None
    """The adapter even if it is not kept, while anybody else holds it."""
    pinned: bool = False
    loading: "Future[A] | None" = None


class AdapterStore(Generic[A]):
    """Adapters by `lora_int_id`. Any thread may call any method.

    At most `capacity` adapters are kept. One that is dropped for another stays known, by id and
    name, and is read again when it is next asked for.
    """

    def __init__(self, load: Callable[[LoRARequest], A], capacity: int) -> None:
        """`load` reads an adapter; several threads may call it at once, for different ids.

        Raises OptionError for a capacity below 1.
        """
        if capacity < 1:
            raise OptionError(f"max_cpu_loras={capacity} must be at least 1.")
        self._load = load
        self._capacity = capacity
        self._lock = threading.Lock()
        self._entries: dict[int, _Entry[A]] = {}  # least recently used first
        self._ids: dict[str, int] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of the adapters that are kept."""
        with self._lock:
            return sum(e.kept.nbytes for e in self._entries.values() if e.kept is not None)

    def get(self, request: LoRARequest) -> A:
        """The adapter, read from its files where it is not in memory.

        Whoever asks for an adapter that another thread reads waits for it, and gets its error.
        With `load_inplace` the files are read again and replace what was there, from the same path
        or another; where that fails, what was there stays.

        Raises OptionError where the id is known by another name or path, or the name by another id,
        and whatever `load` raises; then the store is as before.
        """
        return self._get(request)[0]

    def add(self, request: LoRARequest) -> bool:
        """As `get`; False where it was known already, and is not replaced."""
        return self._get(request)[1]

    def remove(self, lora_int_id: int) -> Removed | None:
        """Forgets an adapter. Who holds it may go on using it. None where it is not known."""
        with self._lock:
            entry = self._known(lora_int_id)
            if entry is None:
                return None
            self._drop(entry)
            return Removed(entry.request, entry.digest)

    def pin(self, lora_int_id: int) -> bool:
        """Keeps an adapter in memory until it is removed; False where it is not known.

        Raises OptionError where as many as can be kept are pinned, and what `load` raises where it
        has to be read again.
        """
        with self._lock:
            entry = self._known(lora_int_id)
            if entry is None:
                return False
            pinned = [other.request.name for other in self._entries.values() if other.pinned]
            if not entry.pinned and len(pinned) >= self._capacity:
                raise OptionError(
                    f"the adapter {entry.request.name!r} cannot be pinned: {len(pinned)} are "
                    f"pinned, as many as max_cpu_loras={self._capacity} allows ("
                    f"{', '.join(map(repr, pinned))}). Remove one of them or raise max_cpu_loras."
                )
            entry.pinned = True
            if self._in_memory(entry) is not None:
                return True
        try:
            self.get(dataclasses.replace(entry.request, load_inplace=False))
        except BaseException:
            entry.pinned = False
            raise
        return True

    def list(self) -> set[int]:
        """The ids of those that are known."""
        return {request.id for request in self.requests()}

    def requests(self) -> tuple[LoRARequest, ...]:
        """Of those that are known, by id."""
        with self._lock:
            known = [entry.request for entry in self._entries.values() if entry.digest]
        return tuple(sorted(known, key=lambda request: request.id))

    def _get(self, request: LoRARequest) -> tuple[A, bool]:
        """The adapter, and whether this call was the first to load it or has replaced it."""
        while True:
            with self._lock:
                entry = self._entry(request)
                if not request.load_inplace and (adapter := self._in_memory(entry)) is not None:
                    return adapter, False
                underway = entry.loading
                if underway is None:
                    entry.loading = future = Future[A]()
                    break
            if request.load_inplace:  # which must read the files itself, after the other has
                wait([underway])
                continue
            try:
                return underway.result(), False
            except CancelledError:  # the other thread was interrupted: that says nothing to us
                continue
        is_new = request.load_inplace or not entry.digest
        return self._fill(entry, request, future), is_new

    def _fill(self, entry: _Entry[A], request: LoRARequest, future: "Future[A]") -> A:
        """Loads the adapter of an entry, without the lock, and tells who waits for `future`."""
        try:
            adapter = self._load(request)
        except BaseException as error:
            with self._lock:
                entry.loading = None
                if not entry.digest:
                    self._drop(entry)
            if isinstance(error, Exception):
                future.set_exception(error)
            else:
                future.cancel()
                future.set_running_or_notify_cancel()  # or `wait` would not see it
            raise
        with self._lock:
            entry.loading = None
            if self._entries.get(request.id) is entry:  # else it was removed meanwhile
                _warn_of_change(entry, request, adapter)
                if request.load_inplace:
                    entry.request = request
                entry.digest = adapter.digest
                self._keep(entry, adapter)
        future.set_result(adapter)
        return adapter

    # All below need the lock

    def _entry(self, request: LoRARequest) -> _Entry[A]:
        """That of a request, a new one if need be; it is now the most recently used."""
        entry = self._entries.pop(request.id, None)
        if entry is not None:
            self._entries[request.id] = entry
            same_path = entry.request.path == request.path or request.load_inplace
            if entry.request.name == request.name and same_path:
                return entry
            raise _taken(request, entry.request, f"lora_int_id={request.id}")
        if (other := self._ids.get(request.name)) is not None:
            raise _taken(request, self._entries[other].request, f"lora_name={request.name!r}")
        self._entries[request.id] = entry = _Entry[A](request)
        self._ids[request.name] = request.id
        return entry

    def _in_memory(self, entry: _Entry[A]) -> A | None:
        if entry.kept is not None:
            return entry.kept
        if (adapter := entry.alive()) is not None:
            self._keep(entry, adapter)
        return adapter

    def _keep(self, entry: _Entry[A], adapter: A) -> None:
        """Holds an adapter in memory, if need be in the place of another that is not pinned."""
        entry.kept, entry.alive = adapter, weakref.ref(adapter)
        kept = [other for other in self._entries.values() if other.kept is not None]
        if len(kept) > self._capacity:
            unpinned = (other for other in kept if other is not entry and not other.pinned)
            next(unpinned, entry).kept = None

    def _known(self, lora_int_id: int) -> _Entry[A] | None:
        entry = self._entries.get(lora_int_id)
        return entry if entry is not None and entry.digest else None

    def _drop(self, entry: _Entry[A]) -> None:
        if self._entries.get(entry.request.id) is entry:
            del self._entries[entry.request.id]
            del self._ids[entry.request.name]


def _warn_of_change(entry: _Entry[A], request: LoRARequest, adapter: A) -> None:
    """Where an adapter that was dropped and is read again is not what it was."""
    if entry.digest not in ("", adapter.digest) and not request.load_inplace:
        logger.warning(
            "The files of the adapter %r in %s have changed since they were read before. Ask with "
            "load_inplace=True to have changed files read at once.",
            request.name,
            request.path,
        )


def _taken(request: LoRARequest, other: LoRARequest, what: str) -> OptionError:
    return OptionError(
        f"{what} cannot stand for the adapter {request.name!r} in {request.path!r} (id "
        f"{request.id}): it is that of {other.name!r} in {other.path!r} (id {other.id}). Give each "
        "adapter a name and an id of its own, remove the other one first, or, for new files of the "
        "same adapter, ask with load_inplace=True."
    )
