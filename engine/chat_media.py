"""Pictures in the messages of a conversation: taken out, and shown to the chat template."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import PromptError

if TYPE_CHECKING:
    from ..multimodal.processors import ImageFormat

_FIELDS = ("image_url", "image_pil", "image")
"""Where a part has its picture; the kind of the part is one of these too, or may be left out."""
_KINDS = (*_FIELDS, "input_image")
_LOOP_OVER_PARTS = re.compile(r"\bin\s+[\w.\[\]'\"]*\bcontent\b")
"""How templates that show pictures themselves go through the parts of a message."""
IMAGE_PART = {"type": "image"}
"""What such templates look for."""


def take_pictures(
    messages: Sequence[Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], list[Any]]:
    """The messages with `IMAGE_PART` for each picture, and the pictures in order.

    A picture is a URL, a PIL image or an array. Raises PromptError for a part without one.
    """
    pictures: list[Any] = []

    def taken(part: Any, index: int) -> Any:
        kind = _kind(part)
        if kind is None:
            return part
        pictures.append(_picture(part, kind, index))
        return dict(IMAGE_PART)

    changed: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        content = message.get("content")
        if isinstance(content, Sequence) and not isinstance(content, str):
            content = [taken(part, index) for part in content]
        changed.append({**message, "content": content} if "content" in message else dict(message))
    return changed, pictures


def has_pictures(messages: object) -> bool:
    """Whether a conversation, or one of several, has parts with pictures."""
    if isinstance(messages, str) or not isinstance(messages, Sequence):
        return False
    return any(
        any(_kind(part) is not None for part in content)
        if isinstance(one, Mapping) and isinstance(content := one.get("content"), list | tuple)
        else has_pictures(one)
        for one in messages
    )


def as_template_content(
    parts: Sequence[dict[str, Any]], template: str, shown: "ImageFormat", first: int
) -> str | list[dict[str, Any]]:
    """The content of a message for a template: its parts, or text with markers in front of it.

    Args:
        parts: of text, `{"type": "text", "text": ...}`, and `IMAGE_PART`.
        first: the number of the first picture.
    """
    if _LOOP_OVER_PARTS.search(template):
        return list(parts)
    texts = [part["text"] for part in parts if part != IMAGE_PART]
    markers = shown.markers(first, len(parts) - len(texts))
    written = "\n".join(texts)
    return "\n".join([*(marker for marker in markers if marker not in written), *texts])


def _kind(part: Any) -> str | None:
    """The kind of a part with a picture; None for others."""
    if not isinstance(part, Mapping):
        return None
    kind = part.get("type")
    if kind is None:
        kind = next((field for field in _FIELDS if field in part), None)
    return kind if kind in _KINDS else None


def _picture(part: Mapping[str, Any], kind: str, index: int) -> Any:
    picture = part.get("image_url" if kind == "input_image" else kind)
    if isinstance(picture, Mapping):
        picture = picture.get("url")
    if picture is None:
        raise PromptError(
            f"Message {index} has a part of type {kind!r} without a picture: give "
            '{"type": "image_url", "image_url": {"url": "..."}}, or {"type": "image_pil", '
            '"image_pil": picture} with a PIL image.'
        )
    return picture
