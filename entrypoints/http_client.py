"""A client of OpenAI-compatible servers: HTTP/1.1 over asyncio's own streams.

One connection a request, and no HTTP library: that would be one more package, and its time would
be in every figure of a benchmark.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any
from urllib.parse import SplitResult, urlsplit

from .. import OptionError

LINE_LIMIT = 2**20
"""Bytes of the longest line that is read."""
BROKEN = (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError, IndexError)
"""What reading raises where a connection ends early or does not speak HTTP."""


class RequestFailedError(Exception):
    """A request got no whole answer: `kind` is short, for counting; `text` tells more."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind
        self.text = text


class HttpClient:
    """Asks one server. Failed requests raise RequestFailedError or OSError."""

    def __init__(self, base_url: str, api_key: str | None, flag: str) -> None:
        """Raises OptionError, naming `flag`, where `base_url` is no http or https address."""
        self._url = _checked(base_url, flag)
        self._headers = {"Host": self._url.netloc, "Connection": "close", "Accept": "*/*"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"

    async def get(self, path: str) -> bytes:
        """The body at `path` below the base URL."""
        async with self._asked(self._message("GET", path, b"")) as lines:
            return b"\n".join([line async for line in lines])

    async def first_model(self) -> str:
        """The first model the server names."""
        text = await self.get("/models")
        models = _parsed(text).get("data") or [{}]
        if "id" not in models[0]:
            raise RequestFailedError("bad answer", f"{text[:200]!r} names no model")
        return str(models[0]["id"])

    async def events(self, path: str, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """Posts `body` and yields each event of the answer, up to its end.

        Closing the generator hangs up.
        """
        message = self._message("POST", path, json.dumps(body).encode())
        async with self._asked(message) as lines:
            async for event in _events(lines):
                yield event

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
                text = b"\n".join([line async for line in lines])
                raise RequestFailedError(f"HTTP {status}", _message_of(text))
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


def _checked(base_url: str, flag: str) -> SplitResult:
    with contextlib.suppress(ValueError):  # of a port that is no number, for one
        url = urlsplit(base_url.rstrip("/"))
        known = url.scheme in ("http", "https") and url.hostname and url.port != 0
        if known and "@" not in url.netloc:
            return url
    raise OptionError(
        f"{flag} {base_url} must be an http or https address without a name and password, "
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


async def _events(lines: AsyncIterator[bytes]) -> AsyncGenerator[dict[str, Any]]:
    """Server-sent events up to the last, which is `[DONE]`. One that is an error is raised."""
    async for line in lines:
        if not line.startswith(b"data:"):
            continue
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            return
        event = _parsed(data)
        if "error" in event:
            raise RequestFailedError("error in the stream", _message_of(data))
        yield event
    raise RequestFailedError("incomplete answer", "it ended without [DONE]")


def _message_of(text: bytes) -> str:
    """What an error in OpenAI's shape says, or else the text itself."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return str(json.loads(text)["error"]["message"])
    return text[:500].decode(errors="replace")


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise RequestFailedError("bad answer", f"{text[:200]!r} is no JSON object")
    return value
