"""What a user may ask the form of an output to be: JSON, a pattern, a choice, or a grammar."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from .validation import Unsupported, flag, refused, strict_options, strings

_FORMS = ("json", "regex", "choice", "grammar", "json_object")
_UNSUPPORTED = {
    "structural_tag": Unsupported(None, "Pass a grammar with the tags in it."),
    "whitespace_pattern": Unsupported(None, "Pass disable_any_whitespace, or a grammar."),
    "disable_fallback": Unsupported(False, "There is one backend, and no fallback."),
    "disable_additional_properties": Unsupported(
        False, 'Put "additionalProperties": false into the schema.'
    ),
}


@strict_options(_UNSUPPORTED)
@dataclasses.dataclass(kw_only=True)
class StructuredOutputsParams:
    """The form of an output, for `SamplingParams(structured_outputs=...)`. Exactly one is given.

    Only tokens that may follow by it are sampled, and the output ends where nothing may. Raises
    `OptionError` for a value of the wrong type, or for none or several forms.
    """

    json: str | Mapping[str, Any] | None = None
    """A JSON schema, as a dict or as JSON text: the output is JSON that it allows."""
    regex: str | None = None
    """A regular expression, in Rust's syntax without anchors, that the whole output matches."""
    choice: list[str] | None = None
    """The output is one of these strings."""
    grammar: str | None = None
    """A context-free grammar in the notation of Lark (llguidance's dialect), or GBNF."""
    json_object: bool | None = None
    """True: the output is any JSON object."""
    disable_any_whitespace: bool = False
    """JSON without white space between its parts."""

    def __post_init__(self) -> None:
        given = [name for name in _FORMS if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            raise refused(
                "structured_outputs",
                dict.fromkeys(given, "..."),
                f"exactly one of {', '.join(_FORMS)}",
                "Pass one, and leave the others out.",
            )
        flag("disable_any_whitespace", self.disable_any_whitespace)
        for name in ("regex", "grammar"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise refused(name, value, "a string", "Pass its text.")
        if self.json_object is not None:
            flag("json_object", self.json_object)
        if self.choice is not None:
            self.choice = strings("choice", self.choice)
            if not self.choice or "" in self.choice:
                raise refused("choice", self.choice, "strings that are not empty", "Name them.")
        if self.json is not None:
            self.json = _schema(self.json)


def _schema(value: object) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            remedy = f"It is no JSON: {error}."
            raise refused("json", value, "a JSON schema", remedy) from error
    if not isinstance(value, Mapping):
        raise refused("json", value, "a JSON schema", "Pass a dict, or the text of a JSON object.")
    return dict(value)
