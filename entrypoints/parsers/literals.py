"""Values that models write as text: Python literals, and text whose type a tool's schema tells."""

import ast
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .events import Tool

_ERRORS = (ValueError, SyntaxError, TypeError, MemoryError, RecursionError)
_JSON_WORDS = {"true": True, "false": False, "null": None}
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_STRING = re.compile(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'', re.DOTALL)


def dump(value: Any) -> str:
    """JSON text of a value, readable where Unicode allows it.

    Raises:
        ValueError, TypeError, RecursionError: for a value that JSON has no text for.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    # half a surrogate pair has no UTF-8
    return json.dumps(value) if _SURROGATE.search(text) else text


def python_literal(code: str) -> Any:
    """The value of a Python literal, in which JSON's words count too, and raw line breaks.

    Raises:
        ValueError: for anything else.
    """
    code = code.strip()
    try:
        return _evaluate(code)
    except _ERRORS:
        escaped = _STRING.sub(lambda string: string[0].replace("\n", "\\n"), code)
    try:
        return _evaluate(escaped)
    except _ERRORS as error:
        raise ValueError(f"{code!r} is no Python literal.") from error


def _evaluate(code: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes that Python does not know
        tree = ast.parse(code, mode="eval")
    value = ast.literal_eval(_JsonWords().visit(tree))
    dump(value)
    return value


class _JsonWords(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(_JSON_WORDS[node.id]) if node.id in _JSON_WORDS else node


def parameter_schemas(tools: Sequence[Tool], name: str) -> Mapping[str, Any]:
    """The schema of the parameters of the tool called `name`; empty where there is none."""
    for tool in tools:
        function = tool.get("function", tool)
        if function.get("name") == name:
            return function.get("parameters") or {}
    return {}


def typed(text: str, key: str, schema: Mapping[str, Any]) -> Any:
    """The value that `text` stands for as parameter `key` of a function with that schema.

    It stays text where the schema says so or knows no such parameter, and where it does not read
    as what the schema wants.
    """
    properties = schema.get("properties") or {}
    if key not in properties:
        return text
    types = set(_types(properties[key], schema, 0))
    if types == {"string"}:
        return text
    for value in _readings(text):
        if not types or _type_of(value) & types:
            return value
    return text


def _readings(text: str) -> Iterator[Any]:
    """What else than text the text may mean, the likeliest first."""
    word = text.strip()
    try:
        value = json.loads(word)
        dump(value)
    except _ERRORS:
        value = text
    if not isinstance(value, str):
        yield value
    elif word.lower() in ("true", "false"):
        yield word.lower() == "true"
    elif word.lower() in ("null", "none"):
        yield None
    elif word[:1] in ("[", "{", "("):
        try:
            yield python_literal(word)
        except ValueError:
            pass


def _type_of(value: Any) -> set[str]:
    match value:
        case bool():
            return {"boolean"}
        case int():
            return {"integer", "number"}
        case float():
            return {"number", "integer"} if value.is_integer() else {"number"}
        case str():
            return {"string"}
        case None:
            return {"null"}
        case dict():
            return {"object"}
        case _:
            return {"array"}


def _types(schema: Any, root: Mapping[str, Any], depth: int) -> Iterator[str]:
    """Names of the types that a schema allows, as far as it says; `root` is where its `$ref` lead.

    A reference may lead back to itself, so this goes to a fixed depth.
    """
    if not isinstance(schema, Mapping) or depth > 8:
        return
    of: Mapping[str, Any] = schema
    kind = of.get("type", [])
    yield from [kind] if isinstance(kind, str) else kind
    if not kind:
        for value in of.get("enum", [of["const"]] if "const" in of else []):
            yield min(_type_of(value))
    if of.get("nullable"):
        yield "null"
    for part in (*of.get("anyOf", ()), *of.get("oneOf", ()), *of.get("allOf", ())):
        yield from _types(part, root, depth + 1)
    if isinstance(reference := of.get("$ref"), str):
        yield from _types(_referred(reference, root), root, depth + 1)


def _referred(reference: str, root: Mapping[str, Any]) -> Any:
    node: Any = root
    for step in reference.removeprefix("#/").split("/"):
        node = node.get(step) if isinstance(node, Mapping) else None
    return node
