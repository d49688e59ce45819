"""One read an adapter, whoever asks when; names and ids that cannot be confused; a limit."""

import dataclasses
import gc
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from quire.engine.adapter_store import AdapterStore
from quire.errors import OptionError
from quire.lora.errors import AdapterError
from quire.lora.request import LoRARequest

SQL = LoRARequest("sql", 1, "/sql")
CHAT = LoRARequest("chat", 2, "/chat")
CODE = LoRARequest("code", 3, "/code")
AGAIN = dataclasses.replace(SQL, load_inplace=True)
SOON = 10.0


@dataclasses.dataclass(eq=False)
class Fake:
    digest: str
    nbytes: int = 100


class Disk:
    """Counts what is read of it; each path may be made to wait, to fail, or to change."""

    def __init__(self) -> None:
        self.reads: list[str] = []
        self.gates: dict[str, threading.Event] = {}
        self.reached: dict[str, threading.Event] = {}
        self.errors: dict[str, BaseException] = {}
        self.contents: dict[str, str] = {}

    def read(self, request: LoRARequest) -> Fake:
        path = request.path
        self.reads.append(path)
        if path in self.gates:
            self.reached[path].set()
            assert self.gates[path].wait(SOON)
        if path in self.errors:
            raise self.errors[path]
        return Fake(self.contents.get(path, path))

    def close(self, path: str) -> None:
        self.gates[path] = threading.Event()
        self.reached[path] = threading.Event()


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def store(disk: Disk) -> AdapterStore[Fake]:
    return AdapterStore(disk.read, 2)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as executor:
        yield executor


def waiting(futures: list[Future[Fake]]) -> bool:
    """Whether none is done a moment later."""
    time.sleep(0.05)
    return not any(future.done() for future in futures)


def test_an_adapter_is_read_once(store: AdapterStore[Fake], disk: Disk) -> None:
    assert store.get(SQL) is store.get(LoRARequest("sql", 1, "/sql"))
    assert disk.reads == ["/sql"]
    assert (store.list(), store.requests(), store.nbytes) == ({1}, (SQL,), 100)


def test_add_says_whether_it_is_new(store: AdapterStore[Fake]) -> None:
    assert [store.add(SQL), store.add(SQL), store.add(AGAIN)] == [True, False, True]


def test_capacity_is_checked(disk: Disk) -> None:
    with pytest.raises(OptionError, match="max_cpu_loras=0 must be at least 1"):
        AdapterStore(disk.read, 0)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (LoRARequest("chat", 1, "/sql"), "lora_int_id=1 cannot stand for the adapter 'chat'"),
        (LoRARequest("sql", 1, "/v2"), r"in '/v2' \(id 1\): it is that of 'sql' in '/sql' \(id 1"),
        (LoRARequest("sql", 2, "/sql"), r"lora_name='sql' .*\(id 2\).*that of 'sql' .*\(id 1\)"),
        (LoRARequest("chat", 1, "/sql", load_inplace=True), "lora_int_id=1 cannot stand"),
        (LoRARequest("sql", 2, "/v2", load_inplace=True), "lora_name='sql' cannot stand"),
    ],
)
def test_names_and_ids_are_unique(
    store: AdapterStore[Fake], disk: Disk, other: LoRARequest, message: str
) -> None:
    store.get(SQL)
    with pytest.raises(OptionError, match=message):
        store.get(other)
    assert (store.requests(), disk.reads) == ((SQL,), ["/sql"])


def test_a_removed_adapter_frees_its_name_and_id(store: AdapterStore[Fake]) -> None:
    store.get(SQL)
    removed = store.remove(1)
    assert removed is not None
    assert (removed.request, removed.digest) == (SQL, "/sql")
    assert store.remove(1) is None
    store.get(LoRARequest("chat", 1, "/chat"))
    store.get(LoRARequest("sql", 2, "/sql"))


def test_the_least_recently_used_is_dropped_but_stays_known(
    store: AdapterStore[Fake], disk: Disk
) -> None:
    for request in (SQL, CHAT, SQL, CODE):
        store.get(request)
    assert (store.nbytes, store.list()) == (200, {1, 2, 3})
    store.get(SQL)
    assert disk.reads == ["/sql", "/chat", "/code"]
    with pytest.raises(OptionError, match="lora_name='chat'"):
        store.get(LoRARequest("chat", 9, "/chat"))
    assert not store.add(CHAT)
    assert disk.reads[3:] == ["/chat"]


def test_a_dropped_adapter_can_be_removed(store: AdapterStore[Fake]) -> None:
    for request in (SQL, CHAT, CODE):
        store.get(request)
    removed = store.remove(1)
    assert removed is not None
    assert removed.digest == "/sql"
    assert store.list() == {2, 3}


def test_a_dropped_adapter_that_somebody_holds_is_not_read_again(
    store: AdapterStore[Fake], disk: Disk
) -> None:
    held = store.get(SQL)
    store.get(CHAT)
    store.get(CODE)
    assert store.get(SQL) is held
    assert disk.reads == ["/sql", "/chat", "/code"]
    del held
    store.get(CHAT)
    store.get(CODE)
    gc.collect()
    store.get(SQL)
    assert disk.reads[3:] == ["/chat", "/code", "/sql"]


def test_files_that_changed_while_dropped(
    store: AdapterStore[Fake], disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    for request in (SQL, CHAT, CODE):
        store.get(request)
    disk.contents["/sql"] = "other"
    with caplog.at_level(logging.WARNING):
        assert store.get(SQL).digest == "other"
    assert "'sql' in /sql have changed" in caplog.text


def test_what_was_said_first_of_an_adapter_stays_known(store: AdapterStore[Fake]) -> None:
    store.add(dataclasses.replace(SQL, base_model_name="base"))
    for request in (CHAT, CODE, SQL):
        store.get(request)
    assert [request.base_model_name for request in store.requests()] == ["base", None, None]


def test_a_pinned_adapter_is_not_dropped(store: AdapterStore[Fake], disk: Disk) -> None:
    store.get(SQL)
    assert store.pin(1)
    for request in (CHAT, CODE, CHAT, CODE):
        store.get(request)
    store.get(SQL)
    assert disk.reads == ["/sql", "/chat", "/code", "/chat", "/code"]
    assert not store.pin(9)


def test_no_more_are_pinned_than_are_kept(store: AdapterStore[Fake], disk: Disk) -> None:
    for request in (SQL, CHAT, CODE):
        store.get(request)
    assert store.pin(1)
    assert disk.reads[3:] == ["/sql"]
    assert store.pin(3)
    assert store.pin(3)
    with pytest.raises(OptionError, match=r"'chat' cannot be pinned: 2 are.*max_cpu_loras=2"):
        store.pin(2)
    assert store.get(CHAT).digest == "/chat"
    assert store.nbytes == 200
    store.remove(1)
    assert store.pin(2)
    assert store.nbytes == 200


def test_one_that_cannot_be_kept_is_not_read_while_it_is_held(
    store: AdapterStore[Fake], disk: Disk
) -> None:
    for request in (SQL, CHAT):
        store.get(request)
        store.pin(request.id)
    held = store.get(CODE)
    assert store.get(CODE) is held
    assert disk.reads == ["/sql", "/chat", "/code"]


def test_a_failed_load_leaves_nothing(store: AdapterStore[Fake], disk: Disk) -> None:
    disk.errors["/sql"] = AdapterError("damaged")
    with pytest.raises(AdapterError, match="damaged"):
        store.get(SQL)
    assert (store.list(), store.remove(1), store.pin(1)) == (set(), None, False)
    store.get(LoRARequest("sql", 5, "/v2"))
    store.get(LoRARequest("chat", 1, "/chat"))


def test_a_pin_that_cannot_be_read_again(store: AdapterStore[Fake], disk: Disk) -> None:
    for request in (SQL, CHAT, CODE):
        store.get(request)
    disk.errors["/sql"] = AdapterError("gone")
    with pytest.raises(AdapterError, match="gone"):
        store.pin(1)
    assert store.list() == {1, 2, 3}
    assert store.pin(2)
    assert store.pin(3)


def test_in_place_reads_again_and_replaces(store: AdapterStore[Fake], disk: Disk) -> None:
    old = store.get(SQL)
    disk.contents["/sql"] = "new"
    assert store.get(AGAIN).digest == "new"
    assert store.get(SQL).digest == "new"
    assert (old.digest, disk.reads) == ("/sql", ["/sql", "/sql"])
    moved = LoRARequest("sql", 1, "/v2", load_inplace=True)
    assert store.get(moved).digest == "/v2"
    assert store.get(LoRARequest("sql", 1, "/v2")).digest == "/v2"
    with pytest.raises(OptionError, match="it is that of 'sql' in '/v2'"):
        store.get(SQL)


def test_in_place_that_fails_keeps_what_was_there(store: AdapterStore[Fake], disk: Disk) -> None:
    old = store.get(SQL)
    disk.errors["/v2"] = AdapterError("damaged")
    with pytest.raises(AdapterError, match="damaged"):
        store.get(LoRARequest("sql", 1, "/v2", load_inplace=True))
    assert store.get(SQL) is old
    assert store.requests() == (SQL,)


def test_many_who_ask_at_once_share_one_read(
    store: AdapterStore[Fake], disk: Disk, threads: ThreadPoolExecutor
) -> None:
    disk.close("/sql")
    asked = [threads.submit(store.get, SQL) for _ in range(12)]
    assert disk.reached["/sql"].wait(SOON)
    assert waiting(asked)
    assert store.get(CHAT).digest == "/chat"  # another one's load does not wait
    assert store.list() == {2}
    disk.gates["/sql"].set()
    assert len({id(future.result(SOON)) for future in asked}) == 1
    assert disk.reads == ["/sql", "/chat"]


def test_many_who_ask_at_once_get_the_error(
    store: AdapterStore[Fake], disk: Disk, threads: ThreadPoolExecutor
) -> None:
    disk.close("/sql")
    disk.errors["/sql"] = AdapterError("damaged")
    asked = [threads.submit(store.get, SQL) for _ in range(5)]
    assert disk.reached["/sql"].wait(SOON)
    assert waiting(asked)
    disk.gates["/sql"].set()
    assert all(isinstance(future.exception(SOON), AdapterError) for future in asked)
    assert disk.reads == ["/sql"]
    disk.errors.clear()
    assert store.get(SQL).digest == "/sql"


def test_an_interrupt_of_one_does_not_reach_the_others(threads: ThreadPoolExecutor) -> None:
    begun, gate = threading.Event(), threading.Event()

    def read(request: LoRARequest) -> Fake:
        if begun.is_set():
            return Fake("read")
        begun.set()
        assert gate.wait(SOON)
        raise KeyboardInterrupt

    store = AdapterStore(read, 2)
    first = threads.submit(store.get, SQL)
    assert begun.wait(SOON)
    others = [threads.submit(store.get, request) for request in (SQL, AGAIN)]
    assert waiting(others)
    gate.set()
    assert isinstance(first.exception(SOON), KeyboardInterrupt)
    assert [other.result(SOON).digest for other in others] == ["read", "read"]


def test_a_name_is_taken_while_it_is_read(
    store: AdapterStore[Fake], disk: Disk, threads: ThreadPoolExecutor
) -> None:
    disk.close("/sql")
    first = threads.submit(store.get, SQL)
    assert disk.reached["/sql"].wait(SOON)
    with pytest.raises(OptionError, match="lora_name='sql'"):
        store.get(LoRARequest("sql", 9, "/other"))
    disk.gates["/sql"].set()
    assert first.result(SOON).digest == "/sql"


def test_in_place_waits_for_the_read_before_it(
    store: AdapterStore[Fake], disk: Disk, threads: ThreadPoolExecutor
) -> None:
    disk.close("/sql")
    first = threads.submit(store.get, SQL)
    assert disk.reached["/sql"].wait(SOON)
    second = threads.submit(store.get, AGAIN)
    assert waiting([first, second])
    disk.gates["/sql"].set()
    assert first.result(SOON) is not second.result(SOON)
    assert disk.reads == ["/sql", "/sql"]
    assert store.get(SQL) is second.result()


def test_who_asks_during_a_replacement_gets_what_was_there(
    store: AdapterStore[Fake], disk: Disk, threads: ThreadPoolExecutor
) -> None:
    old = store.get(SQL)
    disk.close("/sql")
    second = threads.submit(store.get, AGAIN)
    assert disk.reached["/sql"].wait(SOON)
    assert store.get(SQL) is old
    disk.gates["/sql"].set()
    assert second.result(SOON) is store.get(SQL) is not old


@pytest.mark.parametrize("known", [False, True])
def test_removal_while_it_is_read(
    store: AdapterStore[Fake], disk: Disk, threads: ThreadPoolExecutor, known: bool
) -> None:
    """What is not known yet cannot be removed; a replacement of what is gone is not kept."""
    if known:
        store.get(SQL)
    disk.close("/sql")
    loading = threads.submit(store.get, AGAIN)
    assert disk.reached["/sql"].wait(SOON)
    assert (store.remove(1) is not None) is known
    disk.gates["/sql"].set()
    assert loading.result(SOON).digest == "/sql"
    assert store.list() == (set() if known else {1})


def test_threads_at_random() -> None:
    """Whatever happens, one gets the adapter one asked for, and few are kept."""
    store = AdapterStore(lambda request: Fake(f"{request.path} {request.name}"), 3)
    requests = [LoRARequest(f"a{n}", n, f"/{n}") for n in range(1, 7)]

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(300):
            request = rng.choice(requests)
            operation: Callable[[], object] = rng.choice(
                [
                    lambda r=request: store.remove(r.id),
                    lambda r=request: store.requests(),
                    lambda r=request: store.get(dataclasses.replace(r, load_inplace=True)),
                    *[lambda r=request: store.get(r)] * 5,
                ]
            )
            result = operation()
            if isinstance(result, Fake):
                assert result.digest == f"{request.path} {request.name}"
            assert store.nbytes <= 300

    with ThreadPoolExecutor(8) as executor:
        for future in [executor.submit(work, seed) for seed in range(8)]:
            future.result(60)
    assert not any(entry.loading for entry in store._entries.values())
    assert store._ids == {entry.request.name: n for n, entry in store._entries.items()}
