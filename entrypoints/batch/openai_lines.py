"""Lines of OpenAI's batch files, answered as the server would."""

import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, Self, cast

from ... import AsyncEngine, PromptError
from ...errors import nearest
from ..openai.answers import answer_id
from ..openai.chat import chat_completion
from ..openai.completions import completion
from ..openai.errors import as_api_error, bad_request, error_body
from ..openai.options import ServerOptions
from ..openai.protocol import ChatCompletionRequest, CompletionRequest, GenerationRequest
from ..openai.service import Service
from .jsonl import encoded
from .rows import Answer, Row

logger = logging.getLogger(__name__)


class _LineError(PromptError):
    """A line is no request."""


class _Route(NamedTuple):
    request: type[GenerationRequest]
    prefix: str
    """Of the ids of its answers."""
    answer: Callable[[Service, Any, str], Awaitable[dict[str, Any]]]


ROUTES = {
    "/v1/chat/completions": _Route(ChatCompletionRequest, "chatcmpl", chat_completion),
    "/v1/completions": _Route(CompletionRequest, "cmpl", completion),
}


class OpenAILines:
    """Answers lines of custom_id, method, url and body."""

    def __init__(self, service: Service, sampling: Mapping[str, Any]) -> None:
        self._service = service
        self._sampling = sampling

    @classmethod
    async def open(
        cls,
        engine: AsyncEngine,
        options: ServerOptions,
        model: str | None,
        sampling: Mapping[str, Any],
    ) -> Self:
        """Loads the adapters. Raises AdapterError or OptionError.

        Args:
            model: what it is called; None is the demo model.
            sampling: for bodies that do not set their own, as JSON has it.
        """
        service = Service(engine, options, model)
        await service.adapters.start(options.adapters)
        return cls(service, sampling)

    async def answer(self, row: Row) -> Answer:
        """Raises _LineError, ApiError, or what the engine does."""
        route, body = _read(row.fields)
        given = {name: value for name, value in body.items() if value is not None}
        request = route.request.model_validate({**self._sampling, **given})
        if request.stream:
            raise bad_request("stream=true has no place in a batch. Leave it out.", "stream")
        own_id = answer_id(route.prefix, request)
        told = await route.answer(self._service, request, own_id)
        return Answer(
            _line(row.fields, _response(200, told)),
            failed=False,
            prompt_tokens=told["usage"]["prompt_tokens"],
            completion_tokens=told["usage"]["completion_tokens"],
        )

    def refusal(self, row: Row, error: Exception) -> Answer:
        if row.problem is not None or isinstance(error, _LineError):
            problem = {"code": "invalid_line", "message": row.problem or str(error)}
            return Answer(_line(row.fields, None, problem), failed=True)
        told = as_api_error(error)
        if told.status == 500:
            logger.error("a line failed", exc_info=error)
        response = _response(told.status, error_body(told))
        return Answer(_line(row.fields, response), failed=True)


def failed(line: Mapping[str, Any]) -> bool:
    """Whether a line of the output is an error."""
    response = line.get("response")
    return response is None or response["status_code"] != 200


def _read(line: Mapping[str, Any]) -> tuple[_Route, dict[str, Any]]:
    """The route and the body of a line. Raises _LineError."""
    custom_id, method, url = (line.get(name) for name in ("custom_id", "method", "url"))
    if not isinstance(custom_id, str) or not custom_id:
        raise _LineError(f"custom_id={custom_id!r} must be text that tells the line from others.")
    if method not in (None, "POST"):
        raise _LineError(f"method={method!r} must be 'POST'.")
    if not isinstance(url, str) or url not in ROUTES:
        hint = nearest(str(url), ROUTES)
        raise _LineError(f"url={url!r} must be one of {', '.join(ROUTES)}.{hint}")
    body = line.get("body")
    if not isinstance(body, dict):
        raise _LineError(f"body={body!r:.80} must be a JSON object, the request.")
    return ROUTES[url], cast("dict[str, Any]", body)


def _line(
    line: Mapping[str, Any], response: dict[str, Any] | None, error: dict[str, Any] | None = None
) -> bytes:
    """A line of the output."""
    return encoded(
        {
            "id": f"batch_req_{uuid.uuid4().hex}",
            "custom_id": line.get("custom_id"),
            "response": response,
            "error": error,
        }
    )


def _response(status: int, body: dict[str, Any]) -> dict[str, Any]:
    return {"status_code": status, "request_id": uuid.uuid4().hex, "body": body}
