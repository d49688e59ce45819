"""`quire chat --url`: the terminal's chat with a server."""

import asyncio
import io
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tests.live_server import SMALL, live_server

import quire
from quire.entrypoints.cli import main

GREEDY = ("--temperature", "0", "--max-tokens", "24")
ITALY = "What is the capital of Italy?"


class Unloadable:
    """Stands for the engine where none may be made."""

    def __init__(self, *args: object, **options: object) -> None:
        raise AssertionError("an engine was made")


@pytest.fixture(autouse=True)
def _no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quire, "Engine", Unloadable, raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def type_in(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))


def event(**delta: object) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": delta}]}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
MODELS = b'{"data": [{"id": "first"}, {"id": "second"}]}'


@contextmanager
def server(answer: Callable[[str, bytes], list[bytes]], hung_up: threading.Event) -> Iterator[str]:
    """Sends what `answer` makes of a path and a body; after it, waits until the client goes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        body = await reader.readexactly(length)
        for part in answer(head.split()[1].decode(), body):
            writer.write(part)
            await writer.drain()
        if not body:
            writer.close()
            return
        await reader.read()
        writer.close()
        hung_up.set()

    async def run() -> None:
        stop.append(asyncio.Event())
        loops.append(asyncio.get_running_loop())
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
            ports.append(listening.sockets[0].getsockname()[1])
            started.set()
            await stop[0].wait()

    started, ports = threading.Event(), []
    stop: list[asyncio.Event] = []
    loops: list[asyncio.AbstractEventLoop] = []
    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    assert started.wait(10)
    yield f"http://127.0.0.1:{ports[0]}/v1"
    loops[0].call_soon_threadsafe(stop[0].set)
    thread.join(10)


def fixed(*parts: bytes, status: bytes = b"200 OK") -> Callable[[str, bytes], list[bytes]]:
    """Answers every chat with these parts, and names two models."""

    def answer(path: str, body: bytes) -> list[bytes]:
        if path == "/v1/models":
            return [b"HTTP/1.1 200 OK\r\n\r\n" + MODELS]
        return [b"HTTP/1.1 " + status + b"\r\n\r\n", *parts]

    return answer


def test_a_server_answers_and_is_told_what_was_said(
    shell: tuple[Any, str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served, url = shell
    served.seen.clear()
    type_in(monkeypatch, ITALY, "And of France?", "/reset", ITALY)
    argv = ["chat", "--url", url, *GREEDY, "--system", "Be brief.", "--api-key", "k"]
    assert main(argv) == 0
    first, second, third = capsys.readouterr().out.splitlines()
    assert "Rome" in first
    assert second
    assert third == first
    models, *chats = served.seen
    assert models["path"] == "/v1/models"
    assert {one["path"] for one in chats} == {"/v1/chat/completions"}
    assert {one["headers"]["authorization"] for one in served.seen} == {"bearer k"}
    settings = {"model": "demo", "temperature": 0.0, "max_tokens": 24, "stream": True}
    assert all(settings.items() <= one.items() for one in chats)
    system, question = {"role": "system", "content": "Be brief."}, {"role": "user"}
    assert chats[1]["messages"] == [
        system,
        {**question, "content": ITALY},
        {"role": "assistant", "content": first},
        {**question, "content": "And of France?"},
    ]
    assert chats[2]["messages"] == chats[0]["messages"] == [system, {**question, "content": ITALY}]


def test_what_is_not_given_is_left_to_the_server(
    shell: tuple[Any, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    served, url = shell
    served.seen.clear()
    monkeypatch.setenv("OPENAI_API_KEY", "from-outside")
    type_in(monkeypatch, ITALY)
    assert main(["chat", "--url", url.removesuffix("/v1"), "--model", "demo"]) == 0
    assert "Rome" in capsys.readouterr().out
    (chat,) = served.seen
    assert chat["headers"]["authorization"] == "bearer from-outside"
    assert chat.keys() == {"model", "messages", "stream", "path", "headers"}


def test_a_refusal_is_told_and_the_chat_goes_on(
    shell: tuple[Any, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    type_in(monkeypatch, "word " * 300, ITALY)
    assert main(["chat", "--url", shell[1], *GREEDY]) == 0
    captured = capsys.readouterr()
    assert "Rome" in captured.out
    assert captured.err.startswith(f"quire: error: {shell[1]} did not answer: HTTP 400: ")
    assert captured.err.endswith("/reset starts over.\n")


@pytest.mark.parametrize(
    ("parts", "status", "message"),
    [
        ([b'{"error": {"message": "no such model"}}'], b"404 Not Found", "HTTP 404: no such model"),
        (
            [event(content="a"), b'data: {"error": {"message": "broken"}}\n\n'],
            b"200 OK",
            "error in the stream: broken",
        ),
    ],
)
def test_errors_are_told_in_the_servers_words(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    parts: list[bytes],
    status: bytes,
    message: str,
) -> None:
    def answer(path: str, body: bytes) -> list[bytes]:
        lines = b"Content-Length: %d\r\n" % sum(map(len, parts))
        return [b"HTTP/1.1 " + status + b"\r\n" + lines + b"\r\n", *parts]

    type_in(monkeypatch, "Hello")
    with server(answer, threading.Event()) as url:
        assert main(["chat", "--url", url, "--model", "m"]) == 0
    assert f"did not answer: {message}. /reset starts over." in capsys.readouterr().err


def test_reasoning_is_no_part_of_the_answer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opening = event(role="assistant", content="")
    answer = fixed(opening, event(reasoning="hm"), event(content="yes"), DONE)
    type_in(monkeypatch, "Really?")
    with server(answer, threading.Event()) as url:
        assert main(["chat", "--url", url]) == 0
    assert capsys.readouterr().out == "yes\n"


class InterruptingOutput(io.StringIO):
    """A screen before which somebody presses Ctrl-C when the first word appears."""

    def write(self, text: str) -> int:
        if text.strip():
            signal.raise_signal(signal.SIGINT)
        return super().write(text)


def test_ctrl_c_hangs_up_and_the_chat_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a piece is shown."""
    monkeypatch.setattr(sys, "stdout", InterruptingOutput())
    type_in(monkeypatch, "Hello")
    hung_up = threading.Event()
    with server(fixed(event(content="a")), hung_up) as url:
        assert main(["chat", "--url", url]) == 0
        assert hung_up.wait(10)


def test_ctrl_c_while_nothing_comes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(path: str, body: bytes) -> list[bytes]:
        if body:
            threading.Timer(0.3, signal.pthread_kill, (ident, signal.SIGINT)).start()
        return fixed(event(content="so far"))(path, body)

    ident = threading.main_thread().ident
    type_in(monkeypatch, "Hello", "/exit")
    hung_up = threading.Event()
    with server(answer, hung_up) as url:
        assert main(["chat", "--url", url]) == 0
        assert hung_up.wait(10)
    assert capsys.readouterr().out == "so far\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--url", "localhost:8000"], "--url localhost:8000 must be an http or https address"),
        (["--url", "http://127.0.0.1:1"], "http://127.0.0.1:1 did not answer: "),
        (
            ["--url", "http://127.0.0.1:1", "--dtype", "float32", "--max-model-len", "64"],
            "--dtype, --max-model-len: the server at --url has its own engine",
        ),
        (["--api-key", "k"], "--api-key is for a server"),
        (["--url", "http://127.0.0.1:1", "--top-p", "0"], "top_p=0.0"),
    ],
)
def test_mistakes_are_told_in_one_line(
    capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert main(["chat", *argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.slow
def test_a_real_server(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with live_server(*SMALL, "--api-key", "secret") as address:
        type_in(monkeypatch, ITALY)
        assert main(["chat", "--url", address, *GREEDY, "--api-key", "secret"]) == 0
        assert "Rome" in capsys.readouterr().out
        assert main(["chat", "--url", address]) == 2
    assert "HTTP 401: A valid API key is needed" in capsys.readouterr().err
