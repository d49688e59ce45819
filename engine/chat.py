"""Conversations to prompts, by the model's chat template."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ChatTemplateError, OptionError, PromptError
from ..multimodal.names import KINDS
from .chat_media import is_media_part, show_media

if TYPE_CHECKING:
    from ..multimodal.processors import MediaFormat
    from .tokenizer import Tokenizer

_JINJA_MARKS = ("{{", "{%", "{#", "\n")
"""What template text has and the path of a file has not."""
_OWN_VARIABLES = ("add_generation_prompt", "chat_template", "conversation", "messages", "tokenize")
"""Names a template gets from elsewhere than `chat_template_kwargs`."""
_NO_TEMPLATE = (
    "This tokenizer has no chat template: usually only instruction-tuned models have one, and base "
    "models do badly at chat. Pass chat_template= with the text or the file of the template the "
    "model was trained on, such as examples/template_chatml.jinja, or use generate with a prompt."
)


def load_chat_template(chat_template: str | Path | None) -> str | None:
    """The text of a template given as text or as the path of a file; None stays None.

    Raises `ChatTemplateError` for a path that cannot be read.
    """
    if chat_template is None:
        return None
    text = str(chat_template)
    if not isinstance(chat_template, Path) and any(mark in text for mark in _JINJA_MARKS):
        return text
    try:
        return Path(text).read_text("utf-8")
    except (OSError, ValueError) as error:
        raise ChatTemplateError(
            f"chat_template={text!r} is no readable file ({error}), and no template text either, "
            "which has '{{' or '{%'. Pass the path of a template, or its text."
        ) from error


def as_conversations(messages: Sequence[Any]) -> list[list[dict[str, Any]]]:
    """A list of conversations from one (a list of messages) or several (a list of those).

    Raises `PromptError` for anything else.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise _no_conversation(messages)
    if not messages:
        raise PromptError("The conversation is empty: it needs at least one message.")
    if all(isinstance(message, Mapping) for message in messages):
        return [[dict(message) for message in messages]]
    if any(isinstance(one, str | Mapping) or not isinstance(one, Sequence) for one in messages):
        raise _no_conversation(messages)
    return [conversation for one in messages for conversation in as_conversations(one)]


def render_chat(
    tokenizer: "Tokenizer",
    messages: Sequence[Mapping[str, Any]],
    *,
    chat_template: str | Path | None = None,
    tools: Sequence[Any] | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    shown: "Mapping[str, MediaFormat] | None" = None,
) -> str:
    """The prompt of one conversation. It has its special tokens: encode it without adding more.

    Args:
        messages: dicts with `role` and `content`, a string or a list of parts, of text and, where
            `shown` says how prompts show media, what `chat_media.take_media` leaves of those.
        chat_template: text or path; None takes the tokenizer's own.
        tools: JSON schemas, or annotated functions, for a template that offers tools.
        add_generation_prompt: ends the prompt with the header of an assistant's turn.
        continue_final_message: leaves the last message open, to be continued. Needs
            add_generation_prompt=False.
        chat_template_kwargs: more variables for the template, such as enable_thinking.

    Raises:
        PromptError: a message is malformed.
        ChatTemplateError: there is no template, or it refuses the conversation.
        OptionError: the options contradict each other.
    """
    variables = dict(chat_template_kwargs or {})
    _check_options(variables, add_generation_prompt, continue_final_message)
    template = _choose_template(tokenizer, load_chat_template(chat_template), tools)
    conversation = [_normalized(message, index, shown) for index, message in enumerate(messages)]
    if shown is not None:
        show_media(conversation, template, shown)
    try:
        return tokenizer.hf.apply_chat_template(
            conversation,
            chat_template=template,
            tools=None if tools is None else list(tools),
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tokenize=False,
            **variables,
        )
    except Exception as error:  # a template is a program, and may fail in any way
        raise ChatTemplateError(
            f"The chat template refuses this conversation: {error}. Change the messages, or pass "
            "another template with chat_template=."
        ) from error


def _check_options(variables: dict[str, Any], generation_prompt: bool, continued: bool) -> None:
    if generation_prompt and continued:
        raise OptionError(
            "continue_final_message=True and add_generation_prompt=True contradict each other: a "
            "prompt ends in an open message or in a new one. Pass add_generation_prompt=False."
        )
    taken = sorted(set(variables) & {*_OWN_VARIABLES, "tools", "continue_final_message"})
    if taken:
        raise OptionError(
            f"chat_template_kwargs may not hold {taken}: these have arguments of their own. Pass "
            "them there."
        )


def _choose_template(tokenizer: "Tokenizer", given: str | None, tools: Sequence[Any] | None) -> str:
    own = tokenizer.chat_template if given is None else given
    if not own:
        raise ChatTemplateError(_NO_TEMPLATE)
    try:
        template = tokenizer.hf.get_chat_template(given, tools)
    except ValueError as error:
        raise ChatTemplateError(f"{error} Pass chat_template=.") from error
    if tools and "tools" not in template:
        raise ChatTemplateError(
            f"{len(tools)} tools were given, but this chat template has no place for tools. Pass a "
            "template that has with chat_template=, or leave tools out."
        )
    return template


def _no_conversation(given: object) -> PromptError:
    return PromptError(
        f"messages must be a list of dicts with role and content, or a list of such lists, not "
        f"{type(given).__name__} {given!r:.60}. For plain text use generate."
    )


def _normalized(
    message: Mapping[str, Any], index: int, shown: "Mapping[str, MediaFormat] | None"
) -> dict[str, Any]:
    """A message with the arguments of its tool calls as dicts, and its content as one string or,
    where media are shown, as a list of parts.
    """
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise PromptError(
            f"Message {index} has role={role!r}: it needs one, such as 'system', 'user' or "
            "'assistant'."
        )
    calls = message.get("tool_calls")
    content = message.get("content")
    if content is None and not calls:
        raise PromptError(f"Message {index} ({role}) has no content: pass a string.")
    if content is not None:
        content = _flattened(content, index) if shown is None else _parts(content, index, shown)
    normal = {**message, "content": content}
    if calls:
        normal["tool_calls"] = [_with_parsed_arguments(call, index) for call in calls]
    return normal


def _flattened(content: object, index: int) -> str:
    """The text of a message: a string, or text parts, which are put on lines of their own."""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise PromptError(
            f"Message {index} has content of type {type(content).__name__}: pass a string, or a "
            "list of text parts."
        )
    return "\n".join(_text_of(part, index) for part in content)


def _parts(content: object, index: int, shown: "Mapping[str, MediaFormat]") -> list[dict[str, Any]]:
    """The parts of a message, of text and media that are shown."""
    if isinstance(content, str) or not isinstance(content, Sequence):
        return [{"type": "text", "text": _flattened(content, index)}]
    return [
        part
        if is_media_part(part) and part["type"] in shown
        else {"type": "text", "text": _text_of(part, index)}
        for part in content
    ]


def _text_of(part: object, index: int) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if any(medium in str(kind) for medium in KINDS):
        raise PromptError(
            f"Message {index} has a part of type {kind!r}, which this model does not take. Leave "
            "the part out."
        )
    text = part.get("text") if isinstance(part, Mapping) and kind == "text" else None
    if not isinstance(text, str):
        raise PromptError(
            f"Message {index} has a part of type {kind!r}: parts must be "
            '{"type": "text", "text": "..."}.'
        )
    return text


def _with_parsed_arguments(call: Any, index: int) -> Any:
    """A tool call whose arguments are a dict: clients send JSON text, templates want the dict."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except ValueError as error:
        raise PromptError(
            f"Message {index} has a tool call whose arguments are no JSON: {error}. Pass a dict, "
            "or the text of a JSON object."
        ) from error
    return {**call, "function": {**function, "arguments": arguments}}
