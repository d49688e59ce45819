from .sample import Sample

SAMPLES = [
    Sample("no call", "Use <b>bold</b>, 1 < 2.", "Use <b>bold</b>, 1 < 2."),
    Sample(
        "one call",
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>',
        None,
        (("get_weather", '{"city": "Paris"}'),),
    ),
    Sample(
        "two calls",
        '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n'
        '<tool_call>\n{"name": "f", "arguments": {"a": 2}}\n</tool_call>',
        None,
        (("f", '{"a": 1}'), ("f", '{"a": 2}')),
    ),
    Sample(
        "text before and after",
        'I will look.\n\n<tool_call>{"name": "f", "arguments": {}}</tool_call>\nLooking.\n',
        "I will look.\n\n\nLooking.\n",
        (("f", "{}"),),
    ),
    Sample(
        "nested values",
        '<tool_call>{"name": "f", "arguments": {"a": [{"b": {}}, [[]], -0.5], "c": false}}'
        "</tool_call>",
        None,
        (("f", '{"a": [{"b": {}}, [[]], -0.5], "c": false}'),),
    ),
    Sample(
        "strings that look like syntax",
        r'<tool_call>{"name": "f", "arguments": {"a": "</tool_call>\n<tool_call>", "b": "\"}\"雪"}}'
        "</tool_call>",
        None,
        (("f", r'{"a": "</tool_call>\n<tool_call>", "b": "\"}\"雪"}'),),
    ),
    Sample(
        "a raw line break in a string",
        '<tool_call>{"name": "f", "arguments": {"a": "x\ny"}}</tool_call>',
        None,
        (("f", r'{"a": "x\ny"}'),),
    ),
    Sample("no arguments", '<tool_call>{"name": "f"}</tool_call>', None, (("f", "{}"),)),
    Sample(
        "arguments before the name",
        '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>',
        None,
        (("f", '{"a": 1}'),),
    ),
    Sample(
        "a brace too few",
        '<tool_call>\n{"name": "f", "arguments": {"a": 1}\n</tool_call>\n'
        '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>',
        None,
        (("f", '{"a": 1}'), ("g", "{}")),
    ),
    Sample(
        "no end",
        '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n',
        None,
        (("f", '{"a": 1}'),),
    ),
    Sample("broken off in the tag", "Hm <tool_ca", "Hm <tool_ca"),
    Sample("broken off after the tag", "<tool_call>\n", "<tool_call>\n"),
    Sample(
        "broken off in the name",
        '<tool_call>\n{"name": "f',
        '<tool_call>\n{"name": "f',
    ),
    Sample(
        "broken off in the arguments",
        '<tool_call>\n{"name": "f", "arguments": {"a": [1, ',
        None,
        (("f", '{"a": [1, '),),
    ),
    Sample(
        "a tag in prose",
        "The tag <tool_call> opens, </tool_call> closes.",
        "The tag <tool_call> opens, </tool_call> closes.",
    ),
    Sample(
        "quotes that are not JSON's",
        "<tool_call>{'name': 'f'}</tool_call>",
        "<tool_call>{'name': 'f'}</tool_call>",
    ),
]
