from .sample import Sample

SAMPLES = [
    Sample("no call", "Import functools; reduce [1].", "Import functools; reduce [1]."),
    Sample(
        "one call",
        'functools[{"name": "get_weather", "arguments": {"city": "Paris"}}]',
        None,
        (("get_weather", '{"city": "Paris"}'),),
    ),
    Sample(
        "two calls",
        'functools[{"name": "f", "arguments": {"a": 1}}, {"name": "g", "parameters": {}}]',
        None,
        (("f", '{"a": 1}'), ("g", "{}")),
    ),
    Sample(
        "text before and after",
        'Yes. functools[{"name": "f", "arguments": {}}]\nfunctools is done.',
        "Yes. \nfunctools is done.",
        (("f", "{}"),),
    ),
    Sample(
        "nested values",
        'functools[{"name": "f", "arguments": {"a": [{"b": [[]]}, 0.1]}}]',
        None,
        (("f", '{"a": [{"b": [[]]}, 0.1]}'),),
    ),
    Sample(
        "strings that look like syntax",
        r'functools[{"name": "f", "arguments": {"a": "functools[{\"", "b": "😀]}\n"}}]',
        None,
        (("f", r'{"a": "functools[{\"", "b": "😀]}\n"}'),),
    ),
    Sample(
        "special tokens",
        '<|tool_call|>[{"name": "f", "arguments": {"a": 1}}]<|/tool_call|>',
        None,
        (("f", '{"a": 1}'),),
    ),
    Sample("no arguments", 'functools[{"name": "f"}]', None, (("f", "{}"),)),
    Sample("broken off in the marker", "functoo", "functoo"),
    Sample("broken off in the list", 'functools[{"na', 'functools[{"na'),
    Sample(
        "broken off in the arguments",
        'functools[{"name": "f", "arguments": {"a": "\\',
        None,
        (("f", '{"a": "\\'),),
    ),
]
