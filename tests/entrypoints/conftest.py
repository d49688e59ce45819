"""An OpenAI-compatible server: a shell of HTTP around a real engine, with the demo model."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from quire import AsyncEngine, QuireError, RequestOutput, RequestOutputKind, SamplingParams

SAMPLING = ("max_tokens", "temperature", "top_p", "top_k", "ignore_eos")


class Shell:
    """Answers `/v1/models`, and streams `/v1/completions` and `/v1/chat/completions`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self.seen: list[dict[str, Any]] = []
        """The bodies of requests, each with the path and headers."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        headers = dict(line.lower().split(": ", 1) for line in lines if line)
        content = await reader.readexactly(int(headers["content-length"]))
        path = head.split()[1]
        body = json.loads(content or "{}")
        self.seen.append({**body, "path": path, "headers": headers})
        try:
            if path == "/v1/models":
                await _answer(writer, "200 OK", {"data": [{"id": "demo"}]})
            else:
                await self._stream(writer, path, body)
        except QuireError as error:
            await _answer(writer, "400 Bad Request", {"error": str(error)})
        writer.close()

    async def _stream(self, writer: asyncio.StreamWriter, path: str, body: dict[str, Any]) -> None:
        chat = path == "/v1/chat/completions"
        outputs = self._outputs(chat, body)
        output = await anext(outputs)  # raises for a bad prompt, before the answer begins
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        if chat:
            await _event(writer, _choice({"delta": {"role": "assistant", "content": ""}}))
        tokens = 0
        while True:
            [one] = output.outputs
            tokens += len(one.token_ids)
            piece = {"delta": {"content": one.text}} if chat else {"text": one.text}
            await _event(writer, _choice({**piece, "finish_reason": one.finish_reason}))
            if output.finished:
                break
            output = await anext(outputs)
        usage = {"prompt_tokens": len(output.prompt_token_ids), "completion_tokens": tokens}
        await _event(writer, {"choices": [], "usage": usage})
        await _event(writer, "[DONE]")
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    def _outputs(self, chat: bool, body: dict[str, Any]) -> AsyncIterator[RequestOutput]:
        given = {name: body[name] for name in SAMPLING if name in body}
        params = SamplingParams(**given, output_kind=RequestOutputKind.DELTA)
        if chat:
            return self._engine.chat(body["messages"], params)
        return self._engine.generate(body["prompt"], params)


def _choice(piece: dict[str, Any]) -> dict[str, Any]:
    return {"choices": [{"index": 0, "finish_reason": None, **piece}]}


async def _event(writer: asyncio.StreamWriter, event: object) -> None:
    text = event if isinstance(event, str) else json.dumps(event)
    line = f"data: {text}\n\n".encode()
    writer.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
    await writer.drain()


async def _answer(writer: asyncio.StreamWriter, status: str, body: object) -> None:
    content = json.dumps(body).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(content)}\r\n\r\n"
    writer.write(head.encode() + content)
    await writer.drain()


@pytest.fixture(scope="session")
def shell() -> Iterator[tuple[Shell, str]]:
    """A running server and its base URL."""
    engine = AsyncEngine(enforce_eager=True, use_tqdm_on_load=False, max_model_len=128)
    shell, started, urls = Shell(engine), threading.Event(), []

    async def main() -> None:
        server = await asyncio.start_server(shell.serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        urls.append(f"http://127.0.0.1:{port}/v1")
        loop_and_stop.extend((asyncio.get_running_loop(), asyncio.Event()))
        started.set()
        await loop_and_stop[1].wait()
        server.close()

    loop_and_stop: list[Any] = []
    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    assert started.wait(10)
    yield shell, urls[0]
    loop, stop = loop_and_stop
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)
    engine.close()
