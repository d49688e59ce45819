"""A lock that a loop cannot keep for itself."""

import threading


class FairLock:
    """Reentrant; a thread that gives it back gets it again only after one that was waiting.

    Python's own locks go to whoever asks first, which is nearly always the thread that has just
    released it: threads that step in a loop would keep others from ever adding a request.
    """

    def __init__(self) -> None:
        self._next = threading.Lock()
        self._held = threading.Lock()
        self._owner: int | None = None
        self._depth = 0

    def __enter__(self) -> None:
        if self._owner != threading.get_ident():
            with self._next:  # whoever waits for the lock holds this, so its last owner queues here
                self._held.acquire()
            self._owner = threading.get_ident()
        self._depth += 1

    def __exit__(self, *exception: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._owner = None
            self._held.release()
