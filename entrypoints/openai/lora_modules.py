"""What `--lora-modules` names: adapters that are there when the server begins to answer."""

import dataclasses
import json
from collections.abc import Iterable, Iterator
from typing import Any, cast

from ... import OptionError

_FORM = (
    'Write name=path, or JSON: {"name": "sql", "path": "/folder/of/the/adapter"}, with '
    '"base_model_name" if you like, or a list of such objects.'
)
_NEEDED = ("name", "path")
_KEYS = (*_NEEDED, "base_model_name")


@dataclasses.dataclass(frozen=True, slots=True)
class LoRAModule:
    """An adapter to load."""

    name: str
    """What requests call it."""
    path: str
    """Its folder, or the id of its repository."""
    base_model_name: str | None = None
    """The model it was made for; only shown."""


def read_modules(texts: Iterable[str]) -> list[LoRAModule]:
    """The adapters that texts name: `name=path`, JSON objects, or JSON lists of these.

    Raises OptionError for a text of another form, and for a name that is there twice.
    """
    modules = [module for text in texts for module in _read(text)]
    names = [module.name for module in modules]
    for name in names:
        if names.count(name) > 1:
            raise OptionError(
                f"lora_modules names {name!r} twice. Give each adapter a name of its own."
            )
    return modules


def _read(text: str) -> Iterator[LoRAModule]:
    if not text.lstrip().startswith(("{", "[")):
        name, _, path = text.partition("=")
        yield _module(text, {"name": name, "path": path})
        return
    try:
        value = json.loads(text)
    except ValueError as error:
        raise OptionError(f"lora_modules={text!r} is not JSON: {error}. {_FORM}") from error
    for one in cast("list[Any]", value) if isinstance(value, list) else [value]:
        yield _module(text, one)


def _module(text: str, fields: Any) -> LoRAModule:
    if not isinstance(fields, dict):
        raise OptionError(f"lora_modules={text!r} holds {fields!r}, which is no object. {_FORM}")
    every = cast("dict[str, Any]", fields).items()
    given = {name: value for name, value in every if value is not None}
    if unknown := given.keys() - set(_KEYS):
        raise OptionError(f"lora_modules={text!r} has {', '.join(sorted(unknown))}. {_FORM}")
    for name in {*_NEEDED, *given}:
        value = given.get(name)
        if not isinstance(value, str) or not value.strip():
            raise OptionError(f"lora_modules={text!r} has no text as {name}. {_FORM}")
    return LoRAModule(**given)
