from .sample import Sample

SAMPLES = [
    Sample("no call", "It is 21° in Paris.\n", "It is 21° in Paris.\n"),
    Sample("nothing", ""),
    Sample("space alone", " \n", " \n"),
    Sample(
        "one call",
        '{"name": "get_weather", "parameters": {"city": "Paris"}}',
        None,
        (("get_weather", '{"city": "Paris"}'),),
    ),
    Sample(
        "a tag before it",
        '<|python_tag|>{"name": "f", "parameters": {"a": 1}}',
        None,
        (("f", '{"a": 1}'),),
    ),
    Sample(
        "the other key, a type and line breaks",
        '\n{\n  "type": "function",\n  "name": "f",\n  "arguments": {\n    "a": 1\n  }\n}\n',
        None,
        (("f", '{\n    "a": 1\n  }'),),
    ),
    Sample(
        "two calls",
        '{"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {"b": 2}}',
        None,
        (("f", '{"a": 1}'), ("g", '{"b": 2}')),
    ),
    Sample(
        "two calls, each with a tag",
        '<|python_tag|>{"name": "f", "parameters": {}};\n'
        '<|python_tag|> {"name": "f", "parameters": {}};',
        None,
        (("f", "{}"), ("f", "{}")),
    ),
    Sample(
        "text before and after",
        'Sure.\n{"name": "f", "parameters": {}} Done; really.',
        "Sure.\n Done; really.",
        (("f", "{}"),),
    ),
    Sample(
        "nested values",
        '{"name": "f", "parameters": {"a": {"b": [1, [2.5e-3, {"c": null}], true]}, "d": []}}',
        None,
        (("f", '{"a": {"b": [1, [2.5e-3, {"c": null}], true]}, "d": []}'),),
    ),
    Sample(
        "strings that look like syntax",
        r'{"name": "f", "parameters": {"a": "}; {\"name\": \"\\", "b": "é\u00e9\n🦙", "}": "]"}}',
        None,
        (("f", r'{"a": "}; {\"name\": \"\\", "b": "é\u00e9\n🦙", "}": "]"}'),),
    ),
    Sample(
        "a raw line break in a string becomes its escape",
        '{"name": "f", "parameters": {"code": "a\n\tb"}}',
        None,
        (("f", r'{"code": "a\n\tb"}'),),
    ),
    Sample(
        "arguments before the name",
        '{"parameters": {"a": "x"}, "name": "f"}; {"name": "g", "parameters": {}}',
        None,
        (("f", '{"a": "x"}'), ("g", "{}")),
    ),
    Sample(
        "arguments in a string",
        r'{"name": "f", "arguments": "{\"a\": 1}"}',
        None,
        (("f", '{"a": 1}'),),
    ),
    Sample("arguments that are null", '{"name": "f", "arguments": null}', None, (("f", "{}"),)),
    Sample(
        "members after the arguments",
        '{"name": "f", "parameters": {}, "id": {"x": 7}}',
        None,
        (("f", "{}"),),
    ),
    Sample("a name without arguments", '{"name": "Ada", "age": 36}', '{"name": "Ada", "age": 36}'),
    Sample("an object that is no call", ' {"a": {"b": 1}} ', ' {"a": {"b": 1}} '),
    Sample(
        "a call inside a value",
        '{"a": {"name": "f", "parameters": {}}}',
        '{"a": {"name": "f", "parameters": {}}}',
    ),
    Sample(
        "arguments that are a list",
        '{"name": "f", "arguments": [1]}',
        '{"name": "f", "arguments": [1]}',
    ),
    Sample(
        "a name that is a number", '{"name": 1, "arguments": {}}', '{"name": 1, "arguments": {}}'
    ),
    Sample("prose in braces", "{curly} and {} and {{x}}", "{curly} and {} and {{x}}"),
    Sample(
        "prose in braces before a call",
        '{ {"name": "f", "parameters": {}}',
        "{ ",
        (("f", "{}"),),
    ),
    Sample(
        "a tag before other code",
        '<|python_tag|>search.call(query="x")',
        '<|python_tag|>search.call(query="x")',
    ),
    Sample("half a tag", "a <|python_", "a <|python_"),
    Sample("broken off in the name", '{"name": "get_wea', '{"name": "get_wea'),
    Sample("broken off before the arguments", '{"name": "f", "para', '{"name": "f", "para'),
    Sample(
        "broken off in the arguments",
        '{"name": "f", "parameters": {"a": "x',
        None,
        (("f", '{"a": "x'),),
    ),
    Sample(
        "broken off after the arguments",
        '{"name": "f", "parameters": {"a": 1}\n',
        None,
        (("f", '{"a": 1}'),),
    ),
    Sample(
        "arguments that stop being JSON",
        '{"name": "f", "parameters": {"a": True}}',
        "True}}",
        (("f", '{"a": '),),
    ),
    Sample(
        "a call that stops being JSON",
        '{"name": "f", "parameters": {}, nothing}',
        ", nothing}",
        (("f", "{}"),),
    ),
]
