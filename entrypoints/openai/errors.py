"""What clients are told when a request fails: OpenAI's error shape."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from ... import MediaError, errors

_TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    413: "RequestTooLargeError",
    415: "BadRequestError",
    422: "UnprocessableEntityError",
    429: "RateLimitError",
    500: "InternalServerError",
    501: "NotImplementedError",
    503: "ServiceUnavailableError",
}
_USERS_MISTAKES = (
    errors.PromptError,
    errors.OptionError,
    errors.ChatTemplateError,
    errors.MemoryBudgetError,
)
_NAMED = re.compile(r"([a-z_]+)=")
"""Messages that begin with the parameter they are about."""
_SETTINGS = "mm_processor_kwargs"
_SHOWN_VALUE = 80


class ApiError(Exception):
    """A request that fails with an HTTP status and a message for its client."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str | None = None,
        param: str | None = None,
        code: int | str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`type` and `code` follow from the status where None; `param` names a field."""
        super().__init__(message)
        self.status = status
        self.message = _encodable(message)
        self.type = type or _TYPES.get(status, "APIError")
        self.param = None if param is None else _encodable(param)
        self.code = status if code is None else code
        self.headers = dict(headers or {})


def bad_request(message: str, param: str | None = None) -> ApiError:
    """A 400 about the field `param`."""
    return ApiError(400, message, param=param)


def error_body(error: ApiError) -> dict[str, Any]:
    """The JSON object a client gets."""
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }


def as_api_error(exception: Exception) -> ApiError:
    """What to tell a client of an exception. Of those nobody foresaw it gets no details."""
    match exception:
        case ApiError():
            return exception
        case RequestValidationError() | ValidationError():
            return _of_validation(exception.errors())
        case HTTPException():
            return ApiError(exception.status_code, exception.detail, headers=exception.headers)
        case errors.EngineClosedError():
            return ApiError(503, "The engine is not running: it was closed, or died of an error.")
        case MediaError():
            return _of_media(str(exception))
        case exception if isinstance(exception, _USERS_MISTAKES):
            message = _for_a_client(exception)
            named = _NAMED.match(message)
            return bad_request(message, named[1] if named else None)
        case _:
            return ApiError(500, "An error inside the server. Its log has the details.")


def _for_a_client(exception: Exception) -> str:
    message = str(exception)
    if isinstance(exception, errors.ChatTemplateError) and "has no chat template" in message:
        return (
            "This model's tokenizer has no chat template: usually only instruction-tuned models "
            "have one. Start the server with --chat-template and the text or the file of one, such "
            "as examples/template_chatml.jinja, or use /v1/completions."
        )
    return message


def _of_media(message: str) -> ApiError:
    if message.startswith(_SETTINGS):  # a field of the request, and no fault of a picture
        return bad_request(message, _SETTINGS)
    return ApiError(422, message, param="messages")


def _of_validation(problems: Sequence[Any]) -> ApiError:
    """The first of pydantic's problems, since all of them together are hard to read."""
    problem = problems[0]
    reason = problem["msg"]
    if problem["type"] == "json_invalid":
        reason = problem.get("ctx", {}).get("error", reason)
        return bad_request(f"The body is not valid JSON: {reason}. Send one JSON object.")
    where = _field(problem["loc"])
    if where is None:
        return bad_request(f"The body must be one JSON object: {reason}.")
    if problem["type"] == "missing":
        return bad_request(f"{where} is missing: the request needs it.", where)
    if problem["type"] == "extra_forbidden":
        return bad_request(f"There is no field {where}. Leave it out.", where)
    # each of several allowed types is a problem of its own
    reasons = [other["msg"] for other in problems if _field(other["loc"]) == where]
    told = "; or ".join(dict.fromkeys(reasons))
    return bad_request(f"{where}={_shown(problem.get('input'))} is not valid: {told}.", where)


def _field(location: Sequence[int | str]) -> str | None:
    """`("body", "messages", 0, "role")` as `messages[0].role`; None for the whole body."""
    name = ""
    for part in location[1:] if location and location[0] == "body" else location:
        if isinstance(part, int):
            name += f"[{part}]" if name else ""
        elif not _is_type(part):
            name += f".{part}" if name else part
    return name or None


def _is_type(part: str) -> bool:
    """Whether a part of a location tells one of several allowed types."""
    return part in ("str", "int", "float", "bool") or not part.isidentifier() or part[0].isupper()


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_VALUE else text[:_SHOWN_VALUE] + "..."


def _encodable(text: str) -> str:
    """A text without halves of characters, which clients may send but UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode()
