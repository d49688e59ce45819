"""The conversation of a request, as chat templates want it."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from ... import load_chat_template
from .encoding import tokenizer_of
from .errors import bad_request
from .protocol import ChatCompletionRequest, TokenizeRequest
from .service import Service

_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Kinds of parts that are text, and where they have it."""
_IMAGE_PARTS = ("image_url", "input_image")
"""Kinds of parts that are pictures."""
_TEMPLATE_MARKS = ("{{", "{%", "{#")
_VARIABLES = ("documents", "reasoning_effort")
"""Fields of requests that some templates know."""


def template_options(
    service: Service,
    request: ChatCompletionRequest | TokenizeRequest,
    tools: Sequence[Mapping[str, Any]] | None,
) -> dict[str, Any]:
    """The arguments of `AsyncEngine.chat_prompt`. Raises ApiError."""
    template = _checked_template(service, request)
    sees = "image" in service.engine.modalities
    if request.mm_processor_kwargs and not sees:
        raise bad_request(
            "mm_processor_kwargs is for pictures, and this server's model takes text. Leave it "
            "out.",
            "mm_processor_kwargs",
        )
    kwargs = dict(request.chat_template_kwargs or {})
    for name in _VARIABLES:
        value = getattr(request, name, None)
        if value is not None:
            _check_variable(service, template, name)
            kwargs[name] = value
    return {
        "messages": _messages(service, template, request.messages or [], sees=sees),
        "chat_template": template,
        "tools": tools,
        "add_generation_prompt": request.add_generation_prompt,
        "continue_final_message": request.continue_final_message,
        "chat_template_kwargs": kwargs,
        "mm_processor_kwargs": request.mm_processor_kwargs,
    }


def text_of(content: object) -> str:
    """The text of a message's content."""
    if isinstance(content, str):
        return content
    parts = cast("Sequence[Any]", content) if isinstance(content, list) else ()
    return "\n".join(part["text"] for part in parts if "text" in part)


def _checked_template(
    service: Service, request: ChatCompletionRequest | TokenizeRequest
) -> str | None:
    given = request.chat_template
    if given is None:
        return service.options.chat_template
    if not service.options.trust_request_chat_template:
        raise bad_request(
            "chat_template is a program, which this server takes from no client. Leave it out, "
            "or start the server with --trust-request-chat-template.",
            "chat_template",
        )
    if not any(mark in given for mark in _TEMPLATE_MARKS):
        raise bad_request(
            f"chat_template={given[:60]!r} is no template: it has neither '{{{{' nor '{{%'.",
            "chat_template",
        )
    return given


def _check_variable(service: Service, template: str | None, name: str) -> None:
    if name not in _template_text(service, template):
        raise bad_request(
            f"{name} has no place in this model's chat template. Leave it out, or say it in a "
            "message.",
            name,
        )


def _template_text(service: Service, template: str | None) -> str:
    """The template in use; empty where there is none, which the engine will tell."""
    chosen = template if template is not None else service.engine.options.chat_template
    if chosen is not None:
        return load_chat_template(chosen) or ""
    own = tokenizer_of(service).chat_template
    return own if isinstance(own, str) else " ".join((own or {}).values())


def _messages(
    service: Service, template: str | None, given: Sequence[dict[str, Any]], *, sees: bool
) -> list[dict[str, Any]]:
    messages = [_message(message, index, sees=sees) for index, message in enumerate(given)]
    if any(message.get("role") == "developer" for message in messages):
        if "developer" not in _template_text(service, template):
            # OpenAI's newer name of the same role
            for message in messages:
                if message.get("role") == "developer":
                    message["role"] = "system"
    return messages


def _message(given: dict[str, Any], index: int, *, sees: bool) -> dict[str, Any]:
    """A message with text and pictures as content, and its reasoning under both names templates
    use.
    """
    message = {name: value for name, value in given.items() if value is not None}
    message["content"] = given.get("content")
    if isinstance(message["content"], list):
        parts = cast("list[Any]", message["content"])
        where = f"messages[{index}].content"
        message["content"] = [
            _part(part, f"{where}[{at}]", sees=sees) for at, part in enumerate(parts)
        ]
    _check_calls(message.get("tool_calls"), f"messages[{index}].tool_calls")
    reasoning = message.get("reasoning", message.get("reasoning_content"))
    if reasoning is not None:
        message |= {"reasoning": reasoning, "reasoning_content": reasoning}
    return message


def _check_calls(calls: Any, where: str) -> None:
    """Raises ApiError for calls without the form that templates count on."""
    if calls is None:
        return
    for call in cast("list[Any]", calls) if isinstance(calls, list) else [None]:
        function = cast("Any", call.get("function")) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise bad_request(
                f"{where} must be a list of "
                '{"id": ..., "type": "function", "function": {"name": ..., "arguments": ...}}.',
                where,
            )


def _part(part: Any, where: str, *, sees: bool) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if kind is None and "image_url" in part:
        kind = "image_url"
    if sees and kind in _IMAGE_PARTS:
        return _image_part(part, where)
    if not isinstance(kind, str) or kind not in _TEXT_PARTS:
        images = " or image_url" if sees else ""
        raise bad_request(
            f"{where} is of type {kind!r}, but this server's model takes text{images}: a part must "
            'be such as {"type": "text", "text": "..."}.',
            where,
        )
    text = part.get(_TEXT_PARTS[kind])
    if not isinstance(text, str):
        raise bad_request(f"{where}.{_TEXT_PARTS[kind]} must be text.", where)
    return {"type": "text", "text": text}


def _image_part(part: dict[str, Any], where: str) -> dict[str, Any]:
    given = part.get("image_url")
    url = cast("Any", given.get("url")) if isinstance(given, dict) else given
    if not isinstance(url, str) or not url:
        raise bad_request(
            f"{where} must have a URL: "
            '{"type": "image_url", "image_url": {"url": "https://..." or "data:image/..."}}.',
            where,
        )
    return {"type": "image_url", "image_url": {"url": url}}
