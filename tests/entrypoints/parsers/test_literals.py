from typing import Any

import pytest
from tests.entrypoints.parsers.samples.sample import function

from quire.entrypoints.parsers.literals import parameter_schemas, python_literal, typed


@pytest.mark.parametrize(
    ("text", "schema", "value"),
    [
        ("1", {"type": "string"}, "1"),
        ("null", {"type": "string"}, "null"),
        (" 1\n", {"type": "integer"}, 1),
        ("1.5", {"type": "integer"}, "1.5"),
        ("true", {"type": "integer"}, "true"),
        ("1", {"type": "number"}, 1),
        ("TRUE", {"type": "boolean"}, True),
        ("1", {"type": "boolean"}, "1"),
        ("None", {"type": ["integer", "null"]}, None),
        ("None", {"type": "integer"}, "None"),
        ("null", {"type": "integer", "nullable": True}, None),
        ("5", {"type": ["string", "integer"]}, 5),
        ('"5"', {"type": ["string", "integer"]}, '"5"'),
        ("[1]", {"oneOf": [{"type": "array"}, {"type": "string"}]}, [1]),
        ("(1, 2)", {"type": "array"}, (1, 2)),
        ("{'a': \"b\"}", {"type": "object"}, {"a": "b"}),
        ("{1}", {"type": "object"}, "{1}"),
        ("7", {"enum": ["7", "8"]}, "7"),
        ("7", {"const": 7}, 7),
        ("7", {"$ref": "#/$defs/Level"}, 7),
        ("[7]", {"$ref": "#/$defs/Loop"}, [7]),
        ("[7]", {"$ref": "#/$defs/nowhere"}, [7]),
        ("7", True, 7),
        ("x", {}, "x"),
    ],
)
def test_text_takes_the_type_of_its_schema(text: str, schema: Any, value: object) -> None:
    root = {
        "properties": {"p": schema},
        "$defs": {"Level": {"type": "integer"}, "Loop": {"$ref": "#/$defs/Loop"}},
    }
    result = typed(text, "p", root)
    assert result == value
    assert type(result) is type(value)
    assert typed(text, "other", root) == text


def test_schemas_are_found_by_name_in_both_forms() -> None:
    flat = {"type": "function", "name": "g", "parameters": {"a": 1}}
    tools = [function("f", a={}), flat, {"type": "function", "function": {"name": "h"}}]
    assert parameter_schemas(tools, "f")["properties"] == {"a": {}}
    assert parameter_schemas(tools, "g") == {"a": 1}
    assert parameter_schemas(tools, "h") == {}
    assert parameter_schemas(tools, "none") == {}


@pytest.mark.parametrize(
    "code", ["", "f()", "x", "1 if 1 else 2", "{**{}}", "[*[]]", "f'{1}'", "..."]
)
def test_only_literals_are_literals(code: str) -> None:
    with pytest.raises(ValueError, match="is no Python literal"):
        python_literal(code)
