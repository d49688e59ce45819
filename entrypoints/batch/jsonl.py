"""Lines of JSON: read as rows, and written."""

import base64
import datetime
import itertools
import json
import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from .rows import Row, in_blocks


class JsonlSource:
    """A file of JSON objects, one a line; lines without any are passed over."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def names(self) -> Collection[str]:
        return next((row.fields for row in self._rows(0) if row.problem is None), {})

    def count(self) -> int:
        return sum(1 for _ in self._lines())

    def blocks(self, skip: int, names: Collection[str] | None = None) -> Iterator[list[Row]]:
        return in_blocks(self._rows(skip))

    def _rows(self, skip: int) -> Iterator[Row]:
        for number, line in itertools.islice(self._lines(), skip, None):
            yield _row(number, line)

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Lines with their numbers, from 1."""
        with self._path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.isspace():
                    yield number, line


def _row(number: int, line: bytes) -> Row:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Row({}, len(line), f"Line {number} is not JSON: {error}. Write one object a line.")
    if not isinstance(fields, dict):
        kind = type(fields).__name__
        return Row({}, len(line), f"Line {number} is a JSON {kind}. Write one object a line.")
    return Row(fields, len(line))


def encoded(fields: dict[str, Any]) -> bytes:
    """A line of JSON, with its end. Dates and times become text, bytes text in base64."""
    try:
        text = json.dumps(fields, ensure_ascii=False, allow_nan=False, default=_as_json)
        return text.encode() + b"\n"
    except ValueError:  # neither is NaN in JSON, nor are halves of characters in UTF-8
        return json.dumps(_finite(fields), default=_as_json).encode() + b"\n"


def _as_json(value: Any) -> Any:
    match value:
        case bytes():
            return base64.b64encode(value).decode()
        case datetime.date() | datetime.time():
            return value.isoformat()
        case _:
            return str(value)


def _finite(value: Any) -> Any:
    """The same with null for numbers that JSON does not have."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: _finite(one) for key, one in value.items()}
        case list() | tuple():
            return [_finite(one) for one in value]
        case _:
            return value
