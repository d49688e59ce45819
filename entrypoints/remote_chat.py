"""Conversations with a server that speaks OpenAI's chat API."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine, Generator
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

from .. import QuireError
from .http_client import HttpClient, RequestFailedError

T = TypeVar("T")


class RemoteChat:
    """Asks one server, from code that is not asynchronous. Close it, or use it in `with`.

    Args:
        url: with or without the `/v1` at its end.
        model: None takes the first one the server has.
        fields: go with every request, such as `temperature`.

    Raises:
        OptionError: `url` is no http or https address.
        QuireError: the model is not given and the server does not tell one.
    """

    def __init__(
        self, url: str, api_key: str | None, model: str | None, fields: dict[str, Any]
    ) -> None:
        self._url = url
        self._http = HttpClient(_with_version(url), api_key, "--url")
        self._runner = asyncio.Runner()
        try:
            self._body = {"model": model or self._run(self._http.first_model()), **fields}
        except BaseException:
            self._runner.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the event loop."""
        self._runner.close()

    def answers(self, messages: list[dict[str, Any]]) -> Generator[str]:
        """The pieces of the answer to a conversation, each as it comes.

        Ctrl-C, or closing the generator, hangs up. Raises QuireError where the server refuses,
        cannot be reached or fails.
        """
        body = {**self._body, "messages": messages, "stream": True}
        events = self._http.events("/chat/completions", body)
        try:
            while (event := self._run(_next(events))) is not None:
                yield from _texts(event)
        finally:
            self._run(events.aclose())

    def _run(self, what: Coroutine[Any, Any, T]) -> T:
        try:
            return self._runner.run(what)
        except (RequestFailedError, OSError) as error:
            raise QuireError(f"{self._url} did not answer: {error}.") from error


async def _next(events: AsyncGenerator[dict[str, Any]]) -> dict[str, Any] | None:
    return await anext(events, None)


def _texts(event: dict[str, Any]) -> Generator[str]:
    """The answer's text in an event. Reasoning is left out: it is no part of a conversation."""
    for choice in event.get("choices") or ():
        if text := (choice.get("delta") or {}).get("content"):
            yield text


def _with_version(url: str) -> str:
    with contextlib.suppress(ValueError):  # which HttpClient tells
        if urlsplit(url).path in ("", "/"):
            return url.rstrip("/") + "/v1"
    return url
