"""A client of OpenAI-compatible servers that notes when each piece of an answer comes.

HTTP/1.1 over asyncio's own streams, one connection a request: an HTTP library would be one more
package, and its time would be in every figure.
"""

import asyncio
import contextlib
import dataclasses
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any
from urllib.parse import SplitResult, urlsplit

from ... import OptionError

LINE_LIMIT = 2**20
"""Bytes of the longest line that is read."""
BROKEN = (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError, IndexError)
"""What reading raises where a connection ends early or does not speak HTTP."""


class RequestFailedError(Exception):
    """A request got no whole answer: `kind` is short, for counting; `text` tells more."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


@dataclasses.dataclass
class Reply:
    """When an answer came, in seconds of `time.perf_counter()`."""

    sent: float
    """Before the connection was opened."""
    arrivals: list[float] = dataclasses.field(default_factory=list)
    """Of the pieces: a server sends one a token, or several tokens in one."""
    prompt_tokens: int | None = None
    """None where the server does not say."""
    output_tokens: int = 0
    """What the server says, or else the number of pieces."""


class Client:
    """Asks one server. Failed requests raise RequestFailedError, OSError or TimeoutError."""

    def __init__(self, base_url: str, api_key: str | None, timeout: float) -> None:
        """Raises OptionError where `base_url` is no http or https address."""
        self._url = _checked(base_url)
        self._timeout = timeout
        self._headers = {"Host": self._url.netloc, "Connection": "close", "Accept": "*/*"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"

    async def first_model(self) -> str:
        """The first model the server names."""
        async with asyncio.timeout(self._timeout):
            async with self._asked(self._message("GET", "/models", b"")) as lines:
                text = b"".join([line async for line in lines])
        models = _parsed(text).get("data") or [{}]
        if "id" not in models[0]:
            raise RequestFailedError("bad answer", f"{text[:200]!r} names no model")
        return str(models[0]["id"])

    async def stream(self, endpoint: str, body: dict[str, Any]) -> Reply:
        """Posts to `/completions` or `/chat/completions` and reads the answer to its end."""
        message = self._message("POST", endpoint, json.dumps(body).encode())
        async with asyncio.timeout(self._timeout):
            reply = Reply(time.perf_counter())
            async with self._asked(message) as lines:
                await _read_events(lines, reply)
        return reply

    @contextlib.asynccontextmanager
    async def _asked(self, message: bytes) -> AsyncGenerator[AsyncIterator[bytes]]:
        """The lines of the answer. Raises RequestFailedError for any status but 200."""
        secure = self._url.scheme == "https"
        reader, writer = await asyncio.open_connection(
            self._url.hostname,
            self._url.port or (443 if secure else 80),
            ssl=secure or None,
            limit=LINE_LIMIT,
        )
        try:
            writer.write(message)
            await writer.drain()
            status, headers = await _head(reader)
            lines = _lines(_pieces(reader, headers))
            if status != 200:
                text = b"".join([line async for line in lines]).decode(errors="replace")
                raise RequestFailedError(f"HTTP {status}", text[:500])
            yield lines
        except BROKEN as error:
            raise RequestFailedError("incomplete answer", str(error)) from error
        finally:
            writer.close()

    def _message(self, method: str, path: str, content: bytes) -> bytes:
        headers = {
            **self._headers,
            "Content-Type": "application/json",
            "Content-Length": str(len(content)),
        }
        lines = [f"{method} {self._url.path}{path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode() + content


def _checked(base_url: str) -> SplitResult:
    with contextlib.suppress(ValueError):  # of a port that is no number, for one
        url = urlsplit(base_url.rstrip("/"))
        known = url.scheme in ("http", "https") and url.hostname and url.port != 0
        if known and "@" not in url.netloc:
            return url
    raise OptionError(
        f"--base-url {base_url} must be an http or https address without a name and password, "
        "such as http://127.0.0.1:8000/v1. A key is given with --api-key."
    )


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """The status and the headers, their names in lower case."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = (line.partition(":") for line in head[1:] if line)
    return int(head[0].split()[1]), {name.lower(): value.strip() for name, _, value in headers}


async def _pieces(reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncIterator[bytes]:
    """The body as it comes: chunked, of a known length, or up to the end of the connection."""
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            yield await reader.readexactly(size)
            await reader.readexactly(2)
    elif "content-length" in headers:
        yield await reader.readexactly(int(headers["content-length"]))
    else:
        while piece := await reader.read(LINE_LIMIT):
            yield piece


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Whole lines without their ends, each as soon as it is there."""
    rest = b""
    async for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line.rstrip(b"\r")
    if rest:
        yield rest


async def _read_events(lines: AsyncIterator[bytes], reply: Reply) -> None:
    """Reads server-sent events up to the last, which is `[DONE]`."""
    async for line in lines:
        if not line.startswith(b"data:"):
            continue
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            reply.output_tokens = reply.output_tokens or len(reply.arrivals)
            return
        _take(_parsed(data), reply)
    raise RequestFailedError("incomplete answer", "it ended without [DONE]")


def _take(event: dict[str, Any], reply: Reply) -> None:
    if "error" in event:
        raise RequestFailedError("error in the stream", str(event["error"]))
    if any(_is_piece(choice) for choice in event.get("choices") or ()):
        reply.arrivals.append(time.perf_counter())
    if usage := event.get("usage"):
        reply.prompt_tokens = usage.get("prompt_tokens")
        reply.output_tokens = usage.get("completion_tokens", 0)


def _is_piece(choice: dict[str, Any]) -> bool:
    """Whether it stands for a token; those that only open or close an answer do not.

    A token may have no text, such as one that is half of a character.
    """
    delta = choice.get("delta")
    text = choice.get("text") if delta is None else delta.get("content")
    return bool(text) or not (choice.get("finish_reason") or (delta and "role" in delta))


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise RequestFailedError("bad answer", f"{text[:200]!r} is no JSON object")
    return value
