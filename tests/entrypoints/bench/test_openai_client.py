"""What the client makes of answers, byte for byte."""

import asyncio
import contextlib
import json
from typing import Any

import pytest

from quire import OptionError
from quire.entrypoints.bench.openai_client import Client, Reply, RequestFailedError

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def event(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def text(content: str, finish_reason: str | None = None) -> bytes:
    return event(choices=[{"text": content, "finish_reason": finish_reason}])


def delta(finish_reason: str | None = None, **fields: object) -> bytes:
    return event(choices=[{"delta": fields, "finish_reason": finish_reason}])


def chunks(content: bytes, size: int) -> bytes:
    """A chunked body whose chunks end anywhere."""
    pieces = [content[start : start + size] for start in range(0, len(content), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in [*pieces, b""])


def ask(*answer: bytes, call: str = "stream", timeout: float = 10, pause: float = 0) -> Any:
    """What the client says to a server that sends these bytes and hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        for part in answer:
            writer.write(part)
            await asyncio.sleep(pause)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        served.set()

    async def main() -> Any:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        client = Client(f"http://127.0.0.1:{port}/v1/", None, timeout)
        async with server:
            try:
                if call == "stream":
                    return await client.stream("/completions", {"prompt": "é"})
                return await client.first_model()
            finally:
                await served.wait()

    served = asyncio.Event()
    return asyncio.run(main())


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_pieces_are_found_wherever_chunks_end(size: int) -> None:
    usage = event(choices=[], usage={"prompt_tokens": 3, "completion_tokens": 5})
    body = b": a comment\n\n" + text("a") + text("") + text("é", "length") + usage + DONE
    reply: Reply = ask(CHUNKED, chunks(body, size))
    assert len(reply.arrivals) == 3
    assert (reply.prompt_tokens, reply.output_tokens) == (3, 5)
    assert reply.sent <= reply.arrivals[0] <= reply.arrivals[-1]


def test_bodies_without_chunks_and_with_other_line_ends() -> None:
    body = text("a") + text("b") + DONE
    for content in (body, body.replace(b"\n", b"\r\n"), body.rstrip()):
        until_the_end = ask(OK + b"\r\n", content)
        of_a_length = ask(OK + b"Content-Length: %d\r\n\r\n" % len(content), content)
        assert until_the_end.output_tokens == of_a_length.output_tokens == 2
        assert until_the_end.prompt_tokens is None


def test_what_opens_or_closes_a_chat_is_no_token() -> None:
    opening, closing = delta(role="assistant", content=""), delta("stop")
    body = opening + delta(content="a") + delta(content="") + closing + DONE
    assert len(ask(OK + b"\r\n", body).arrivals) == 2
    whole = delta(role="assistant", content="a") + delta("length", content="b") + DONE
    assert len(ask(OK + b"\r\n", whole).arrivals) == 2


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (b"HTTP/1.1 429 Slow down\r\n\r\nbusy", "HTTP 429", "HTTP 429: busy"),
        (b"HTTP/1.1 404 No\r\nContent-Length: 2\r\n\r\nno", "HTTP 404", "HTTP 404: no"),
        (OK + b"\r\n" + text("a"), "incomplete answer", r"without \[DONE\]"),
        (CHUNKED + chunks(text("a"), 9)[:30], "incomplete answer", "incomplete answer"),
        (CHUNKED + b"zz\r\n", "incomplete answer", "incomplete answer"),
        (b"", "incomplete answer", "incomplete answer"),
        (b"hello\r\n\r\n", "incomplete answer", "incomplete answer"),
        (OK + b"\r\ndata: {\n\n", "bad answer", "is no JSON object"),
        (OK + b"\r\ndata: [1]\n\n", "bad answer", "is no JSON object"),
        (OK + b"\r\n" + event(error="no memory"), "error in the stream", "no memory"),
    ],
)
def test_failures_have_a_kind(answer: bytes, kind: str, message: str) -> None:
    with pytest.raises(RequestFailedError, match=message) as error:
        ask(answer)
    assert error.value.kind == kind


def test_a_server_that_takes_too_long_is_a_timeout() -> None:
    with pytest.raises(TimeoutError):
        ask(CHUNKED, b"", timeout=0.1, pause=0.3)


def test_the_first_model() -> None:
    assert ask(OK + b"\r\n", b'{"data": [{"id": "a"},\n{"id": "b"}]}', call="model") == "a"
    with pytest.raises(RequestFailedError, match="names no model"):
        ask(OK + b"\r\n", b'{"data": []}', call="model")


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8000", "ftp://x/v1", "http://", "http://u:p@x/v1", "http://x:y/v1", "http://["],
)
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(OptionError, match="--base-url .* must be an http or https address"):
        Client(url, None, 1)
