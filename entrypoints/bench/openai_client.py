"""A client of OpenAI-compatible servers that notes when each piece of an answer comes."""

import asyncio
import contextlib
import dataclasses
import time
from typing import Any

from ..http_client import HttpClient, RequestFailedError

__all__ = ["Client", "Reply", "RequestFailedError"]


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

    def take(self, event: dict[str, Any]) -> None:
        """Notes an event that has just come."""
        if any(_is_piece(choice) for choice in event.get("choices") or ()):
            self.arrivals.append(time.perf_counter())
        if usage := event.get("usage"):
            self.prompt_tokens = usage.get("prompt_tokens")
            self.output_tokens = usage.get("completion_tokens", 0)


class Client:
    """Asks one server. Failed requests raise RequestFailedError, OSError or TimeoutError."""

    def __init__(self, base_url: str, api_key: str | None, timeout: float) -> None:
        """Raises OptionError where `base_url` is no http or https address."""
        self._http = HttpClient(base_url, api_key, "--base-url")
        self._timeout = timeout

    async def first_model(self) -> str:
        """The first model the server names."""
        async with asyncio.timeout(self._timeout):
            return await self._http.first_model()

    async def stream(self, endpoint: str, body: dict[str, Any]) -> Reply:
        """Posts to `/completions` or `/chat/completions` and reads the answer to its end."""
        async with asyncio.timeout(self._timeout):
            reply = Reply(time.perf_counter())
            async with contextlib.aclosing(self._http.events(endpoint, body)) as events:
                async for event in events:
                    reply.take(event)
        reply.output_tokens = reply.output_tokens or len(reply.arrivals)
        return reply


def _is_piece(choice: dict[str, Any]) -> bool:
    """Whether it stands for a token; those that only open or close an answer do not.

    A token may have no text, such as one that is half of a character.
    """
    delta = choice.get("delta")
    text = choice.get("text") if delta is None else delta.get("content")
    return bool(text) or not (choice.get("finish_reason") or (delta and "role" in delta))
