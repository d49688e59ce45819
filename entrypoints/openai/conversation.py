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
_MEDIA_PARTS = {
    "image_url": ("image", "image_url"),
    "input_image": ("image", "image_url"),
    "video_url": ("video", "video_url"),
    "audio_url": ("audio", "audio_url"),
    "input_audio": ("audio", "input_audio"),
}
"""Types of parts that are media: of which kind, and where they have it."""
_SHOWN = {"image": "image_url", "video": "video_url", "audio": "input_audio or audio_url"}
"""What messages to clients name, by kind."""
_AUDIO_FORMATS = ("wav", "mp3", "flac", "ogg")
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
    kinds = service.engine.modalities - {"text"}
    if request.mm_processor_kwargs and not kinds:
        raise bad_request(
            "mm_processor_kwargs is for media, and this server's model takes text. Leave it out.",
            "mm_processor_kwargs",
        )
    kwargs = dict(request.chat_template_kwargs or {})
    for name in _VARIABLES:
        value = getattr(request, name, None)
        if value is not None:
            _check_variable(service, template, name)
            kwargs[name] = value
    return {
        "messages": _messages(service, template, request.messages or [], kinds),
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
    service: Service, template: str | None, given: Sequence[dict[str, Any]], kinds: frozenset[str]
) -> list[dict[str, Any]]:
    messages = [_message(message, index, kinds) for index, message in enumerate(given)]
    if any(message.get("role") == "developer" for message in messages):
        if "developer" not in _template_text(service, template):
            # OpenAI's newer name of the same role
            for message in messages:
                if message.get("role") == "developer":
                    message["role"] = "system"
    return messages


def _message(given: dict[str, Any], index: int, kinds: frozenset[str]) -> dict[str, Any]:
    """A message with text and media as content, and its reasoning under both names templates
    use.
    """
    message = {name: value for name, value in given.items() if value is not None}
    message["content"] = given.get("content")
    if isinstance(message["content"], list):
        parts = cast("list[Any]", message["content"])
        where = f"messages[{index}].content"
        message["content"] = [_part(part, f"{where}[{at}]", kinds) for at, part in enumerate(parts)]
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


def _part(part: Any, where: str, kinds: frozenset[str]) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if kind is None:
        kind = next((known for known in _MEDIA_PARTS if known in part), None)
    if isinstance(kind, str) and _MEDIA_PARTS.get(kind, ("",))[0] in kinds:
        return _media_part(part, *_MEDIA_PARTS[kind], where)
    if not isinstance(kind, str) or kind not in _TEXT_PARTS:
        taken = " or ".join(["text", *(_SHOWN[one] for one in sorted(kinds))])
        raise bad_request(
            f"{where} is of type {kind!r}, but this server's model takes {taken}: a part must "
            'be such as {"type": "text", "text": "..."}.',
            where,
        )
    text = part.get(_TEXT_PARTS[kind])
    if not isinstance(text, str):
        raise bad_request(f"{where}.{_TEXT_PARTS[kind]} must be text.", where)
    return {"type": "text", "text": text}


def _media_part(part: dict[str, Any], kind: str, field: str, where: str) -> dict[str, Any]:
    if field == "input_audio":
        return _audio_part(part, where)
    given = part.get(field)
    url = cast("Any", given.get("url")) if isinstance(given, dict) else given
    if not isinstance(url, str) or not url:
        raise bad_request(
            f"{where} must have a URL: "
            f'{{"type": "{field}", "{field}": {{"url": "https://..." or "data:{kind}/..."}}}}.',
            where,
        )
    return {"type": field, field: {"url": url}}


def _audio_part(part: dict[str, Any], where: str) -> dict[str, Any]:
    """A sound in the request itself, as OpenAI's API has them."""
    given = part.get("input_audio")
    data = cast("Any", given.get("data")) if isinstance(given, dict) else None
    named = cast("Any", given.get("format")) if isinstance(given, dict) else None
    if not isinstance(data, str) or not data or named not in (None, *_AUDIO_FORMATS):
        raise bad_request(
            f"{where} must have a sound in base64, of one of the formats "
            f"{', '.join(_AUDIO_FORMATS)}: "
            '{"type": "input_audio", "input_audio": {"data": "...", "format": "wav"}}.',
            where,
        )
    return {"type": "input_audio", "input_audio": {"data": data}}
