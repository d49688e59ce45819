"""The lock that threads of one engine share."""

import threading
import time

from quire.engine.fair_lock import FairLock


def test_a_loop_lets_others_in() -> None:
    lock = FairLock()
    stop = threading.Event()

    def loop() -> None:
        while not stop.is_set():
            with lock:
                time.sleep(0.001)

    thread = threading.Thread(target=loop)
    thread.start()
    entered = 0
    deadline = time.monotonic() + 10
    while entered < 50 and time.monotonic() < deadline:
        with lock:
            entered += 1
    stop.set()
    thread.join()
    assert entered == 50


def test_it_may_be_taken_twice_by_its_owner_and_excludes_others() -> None:
    lock = FairLock()
    order: list[str] = []

    def other() -> None:
        with lock:
            order.append("other")

    thread = threading.Thread(target=other)
    with lock, lock:
        thread.start()
        time.sleep(0.01)
        order.append("owner")
    thread.join()
    assert order == ["owner", "other"]
