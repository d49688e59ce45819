"""A server's process: how it starts, bears load, and ends."""

import asyncio
import contextlib
import gc
import json
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import uvicorn
from tests.live_server import SMALL, free_port

from quire import AsyncEngine
from quire.entrypoints.cli import main
from quire.entrypoints.openai import server

from .conftest import StandIn, make_service

pytestmark = pytest.mark.slow

KEY = {"Authorization": "Bearer secret"}
LONG: dict[str, Any] = {
    "prompt": "Once upon a time",
    "max_tokens": 900,
    "ignore_eos": True,
    "stream": True,
}


@contextlib.contextmanager
def process(
    *flags: str, command: tuple[str, ...] = ("-m", "quire.entrypoints.openai.api_server")
) -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    """A server and its address, once it answers. It is killed at the end if it still runs."""
    port = free_port()
    argv = [sys.executable, *command, *SMALL, "--port", str(port), *flags]
    address = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile("w+") as log:
        running = subprocess.Popen(argv, stdout=log, stderr=log)
        try:
            wait_for(running, f"{address}/health")
            yield running, address
        except BaseException:
            log.seek(0)
            print(log.read(), file=sys.stderr)
            raise
        finally:
            running.kill()
            running.wait()


def wait_for(running: "subprocess.Popen[bytes]", url: str) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        assert running.poll() is None, f"the server ended with status {running.returncode}"
        with contextlib.suppress(httpx.TransportError):
            assert httpx.get(url).status_code == 200
            return
        time.sleep(0.1)
    raise TimeoutError("the server did not start")


def metric(address: str, name: str) -> float:
    text = httpx.get(f"{address}/metrics", headers=KEY).text
    (line,) = [one for one in text.splitlines() if one.startswith(f"vllm:{name}{{")]
    return float(line.rpartition(" ")[2])


def eventually(address: str, name: str, value: float) -> None:
    end = time.monotonic() + 20
    while (found := metric(address, name)) != value:
        assert time.monotonic() < end, f"{name} is {found}, not {value}"
        time.sleep(0.05)


class Reader(threading.Thread):
    """Reads one stream to its end."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self._url = f"{address}/v1/completions"
        self.lines: list[str] = []
        self.error: Exception | None = None
        self.begun = threading.Event()
        self.start()

    def run(self) -> None:
        try:
            with httpx.stream("POST", self._url, json=LONG, headers=KEY, timeout=60) as response:
                for line in response.iter_lines():
                    self.lines += [line] if line else []
                    self.begun.set()
        except httpx.TransportError as error:
            self.error = error
        self.begun.set()

    @property
    def tokens(self) -> int:
        chunks = [json.loads(line.removeprefix("data: ")) for line in self.lines[:-1]]
        return sum(1 for chunk in chunks if chunk["choices"])


def test_operation() -> None:
    """A key, a bound on waiting, hang-ups, and a drain, all of one server."""
    flags = ["--max-num-seqs", "1", "--max-waiting", "1", "--api-key", "secret"]
    flags += ["--served-model-name", "a"]
    command = (
        "-c",
        "import sys; from quire.entrypoints.cli import main; sys.exit(main())",
        "serve",
    )
    with process(*flags, command=command) as (running, address):
        assert httpx.get(f"{address}/v1/models").status_code == 401
        models = httpx.get(f"{address}/v1/models", headers=KEY).json()["data"]
        assert [model["id"] for model in models] == ["a"]
        check_the_queue(address)
        check_hang_ups(address)
        check_drain(running, address)


def check_the_queue(address: str) -> None:
    first = Reader(address)
    assert first.begun.wait(60)
    second = Reader(address)
    eventually(address, "num_requests_waiting", 1)
    refused = httpx.post(f"{address}/v1/completions", json=LONG, headers=KEY)
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["type"] == "ServiceUnavailableError"
    for reader in (first, second):
        reader.join(60)
        assert reader.lines[-1] == "data: [DONE]"
    assert metric(address, "admission_rejections_total") == 1


def check_hang_ups(address: str) -> None:
    url = f"{address}/v1/completions"
    before = metric(address, "generation_tokens_total")
    with httpx.stream("POST", url, json=LONG, headers=KEY) as response:
        lines = response.iter_lines()  # whose end would be the response's
        next(lines)
        assert metric(address, "num_requests_running") == 1
        assert metric(address, "kv_cache_usage_perc") > 0
    eventually(address, "num_requests_running", 0)
    assert metric(address, "kv_cache_usage_perc") == 0
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(url, json={**LONG, "stream": False}, headers=KEY, timeout=0.05)
    eventually(address, "num_requests_running", 0)
    eventually(address, "kv_cache_usage_perc", 0)
    assert metric(address, "generation_tokens_total") < before + 2 * LONG["max_tokens"]


def check_drain(running: "subprocess.Popen[bytes]", address: str) -> None:
    reader = Reader(address)
    assert reader.begun.wait(60)
    running.send_signal(signal.SIGTERM)
    reader.join(60)
    assert (reader.error, reader.lines[-1]) == (None, "data: [DONE]")
    assert running.wait(30) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/health")


def test_what_does_not_end_in_time_is_aborted() -> None:
    with process("--shutdown-timeout", "0", "--max-num-seqs", "1") as (running, address):
        reader = Reader(address)
        assert reader.begun.wait(60)
        running.send_signal(signal.SIGINT)
        assert running.wait(30) == 0
        reader.join(30)
        assert reader.lines[-1] != "data: [DONE]"


def test_a_second_signal_ends_it_at_once() -> None:
    with process("--max-num-seqs", "1") as (running, address):
        assert Reader(address).begun.wait(60)
        for _ in range(29):
            Reader(address)
        eventually(address, "num_requests_waiting", 29)
        running.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        running.send_signal(signal.SIGTERM)
        assert running.wait(5) == 128 + signal.SIGTERM


def test_a_dead_engine_ends_the_server(engine: StandIn, caplog: pytest.LogCaptureFixture) -> None:
    def die_once_it_answers() -> None:
        while True:
            with contextlib.suppress(httpx.TransportError):
                statuses.append(httpx.get(url).status_code)
                break
        engine.die()

    statuses: list[int] = []
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{sock.getsockname()[1]}/health"
        thread = threading.Thread(target=die_once_it_answers, daemon=True)
        thread.start()
        assert server._serve(make_service(engine), sock) == 1
        thread.join(10)
    assert statuses == [200]
    assert "the engine died: the engine stopped." in caplog.text


@pytest.fixture
def logs_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logging is a whole process's, and this one is the tests'."""
    monkeypatch.setattr(server, "_set_up_logs", lambda options: None)


@pytest.mark.usefixtures("logs_left_alone")
def test_a_taken_port_is_told_before_the_model_loads(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", "no/such-model", "--port", str(port)]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("quire: error: host='127.0.0.1'")
    assert "--port" in message


@pytest.mark.usefixtures("logs_left_alone")
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["/no/such/model"], "/no/such/model"),
        (["--max-model-len", "-1"], "max_model_len=-1"),
        (["--tensor-parallel-size", "2"], "tensor_parallel_size=2"),
        (["--chat-template", "no.jinja"], "no.jinja"),
        (["--uds", "/no/such/folder/socket"], "uds='/no/such/folder/socket'"),
        (["--host", "no.such.host.invalid"], "no.such.host.invalid"),
    ],
)
def test_mistakes_are_told(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--port", "0", *flags]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(path))
    argv = [sys.executable, "-m", "quire.entrypoints.openai.api_server", "--uds", str(path)]
    running = subprocess.Popen(
        [*argv, *SMALL], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        while not answers(path):
            assert running.poll() is None
            time.sleep(0.1)
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
            assert client.get("http://server/health").status_code == 200
        running.send_signal(signal.SIGTERM)
        assert running.wait(30) == 0
        assert not path.exists()
    finally:
        running.kill()
        running.wait()


def answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as trial:
        return trial.connect_ex(str(path)) == 0


def test_what_programs_leave_behind_is_kept_from_garbage_collection(engine: StandIn) -> None:
    running = server.Server(uvicorn.Config(lambda: None), cast(AsyncEngine, engine))
    gc.collect()
    try:
        assert not asyncio.run(running.on_tick(1))
        kept = gc.get_freeze_count()
        assert kept > 1000
        gc.unfreeze()
        assert not asyncio.run(running.on_tick(2))  # nothing has been compiled since
        assert gc.get_freeze_count() == 0
        engine.die()
        assert asyncio.run(running.on_tick(3))
    finally:
        gc.unfreeze()
