"""Media in the messages of a conversation: taken out, and shown to the chat template."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import PromptError
from ..multimodal.names import KINDS

if TYPE_CHECKING:
    from ..multimodal.processors import MediaFormat

_FIELDS = {
    "image_url": "image",
    "image_pil": "image",
    "image": "image",
    "video_url": "video",
    "video": "video",
    "audio_url": "audio",
    "input_audio": "audio",
    "audio": "audio",
}
"""Where a part has its medium, and of which kind that is; the part's type is one of these too, or
may be left out."""
_OTHER_TYPES = {"input_image": "image_url"}
"""Types of parts, and where those have their medium."""
_LOOP_OVER_PARTS = re.compile(r"\bin\s+[\w.\[\]'\"]*\bcontent\b")
"""How templates that show media themselves go through the parts of a message."""


def take_media(
    messages: Sequence[Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], list[tuple[str, Any]]]:
    """The messages with a part of its kind for each medium, and kinds and media in order.

    A medium is a URL, or what `multi_modal_data` takes. Raises PromptError for a part without one.
    """
    media: list[tuple[str, Any]] = []

    def taken(part: Any, index: int) -> Any:
        if (field := _field(part)) is None:
            return part
        kind = _FIELDS[field]
        media.append((kind, _medium(part, field, index)))
        return _shown(kind)

    changed: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        content = message.get("content")
        if isinstance(content, Sequence) and not isinstance(content, str):
            content = [taken(part, index) for part in content]
        changed.append({**message, "content": content} if "content" in message else dict(message))
    return changed, media


def has_media_parts(messages: object) -> bool:
    """Whether a conversation, or one of several, has parts with media."""
    if isinstance(messages, str) or not isinstance(messages, Sequence):
        return False
    return any(
        any(_field(part) is not None for part in content)
        if isinstance(one, Mapping) and isinstance(content := one.get("content"), list | tuple)
        else has_media_parts(one)
        for one in messages
    )


def is_media_part(part: object) -> bool:
    """Whether `take_media` put it where a medium was."""
    return part in map(_shown, KINDS)


def _shown(kind: str) -> dict[str, Any]:
    """Templates ask for the type of a part, or for a key."""
    return {"type": kind, kind: True}


def show_media(
    messages: Sequence[dict[str, Any]], template: str, shown: "Mapping[str, MediaFormat]"
) -> None:
    """Makes the content of messages what a template takes: parts, or text with markers before it.

    Args:
        messages: whose content are parts, of text and as `take_media` leaves them.
        shown: how prompts show each kind.
    """
    numbers = {kind: iter(range(1, 1 << 30)) for kind in shown}
    loops = _LOOP_OVER_PARTS.search(template)
    for message in messages:
        if (parts := message["content"]) is not None and not loops:
            message["content"] = _with_markers(parts, shown, numbers)


def _with_markers(
    parts: Sequence[dict[str, Any]],
    shown: "Mapping[str, MediaFormat]",
    numbers: Mapping[str, Iterator[int]],
) -> str:
    kinds = [part["type"] for part in parts if is_media_part(part)]
    markers = [shown[kind].marked(next(numbers[kind])) for kind in kinds]
    texts = [part["text"] for part in parts if not is_media_part(part)]
    written = "\n".join(texts)
    return "\n".join([*(marker for marker in markers if marker not in written), *texts])


def _field(part: Any) -> str | None:
    """Where a part has its medium; None for parts of other kinds."""
    if not isinstance(part, Mapping):
        return None
    if (kind := part.get("type")) is None:
        return next((field for field in _FIELDS if field in part), None)
    field = _OTHER_TYPES.get(kind, kind) if isinstance(kind, str) else None
    return field if field in _FIELDS else None


def _medium(part: Mapping[str, Any], field: str, index: int) -> Any:
    medium = part.get(field)
    if isinstance(medium, Mapping):
        medium = _from_dict(medium)
    if medium is None:
        raise PromptError(
            f"Message {index} has a part of type {part.get('type', field)!r} without a medium: "
            'give such as {"type": "image_url", "image_url": {"url": "..."}}, or '
            '{"type": "image_pil", "image_pil": picture} with a PIL image.'
        )
    return medium


def _from_dict(medium: Mapping[str, Any]) -> Any:
    """A URL; of what is sent in base64, as sounds are in the API of OpenAI, one that holds it."""
    data = medium.get("data")
    return f"data:;base64,{data}" if isinstance(data, str) else medium.get("url")
