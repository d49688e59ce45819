from .sample import Sample

SAMPLES = [
    Sample("no call", "A list: [1, 2] [TOOL", "A list: [1, 2] [TOOL"),
    Sample(
        "one call",
        '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}}]',
        None,
        (("get_weather", '{"city": "Paris"}'),),
    ),
    Sample(
        "two calls",
        '[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}, "id": "a1b2c3d4e"}, '
        '{"name": "g", "arguments": {}}]',
        None,
        (("f", '{"a": 1}'), ("g", "{}")),
    ),
    Sample(
        "text before and after",
        'Hello[TOOL_CALLS] [{"name": "f", "arguments": {}}]\nDone.',
        "Hello\nDone.",
        (("f", "{}"),),
    ),
    Sample(
        "nested values",
        '[TOOL_CALLS] [{"name": "f", "arguments": {"a": [[1], {"b": [{}]}], "c": null}}]',
        None,
        (("f", '{"a": [[1], {"b": [{}]}], "c": null}'),),
    ),
    Sample(
        "strings that look like syntax",
        r'[TOOL_CALLS] [{"name": "f", "arguments": {"a": "}]\"[TOOL_CALLS]", "b": "\\ñ\n"}}]',
        None,
        (("f", r'{"a": "}]\"[TOOL_CALLS]", "b": "\\ñ\n"}'),),
    ),
    Sample(
        "arguments before the name",
        '[TOOL_CALLS] [{"arguments": {"a": 1}, "name": "f"}]',
        None,
        (("f", '{"a": 1}'),),
    ),
    Sample(
        "newer: one call",
        '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}',
        None,
        (("get_weather", '{"city": "Paris"}'),),
    ),
    Sample(
        "newer: two calls, without the middle marker",
        '[TOOL_CALLS]f{"a": "[ARGS]"}[TOOL_CALLS]g.h-1{}',
        None,
        (("f", '{"a": "[ARGS]"}'), ("g.h-1", "{}")),
    ),
    Sample(
        "newer: two calls with identifiers",
        '[TOOL_CALLS]f[CALL_ID]a1b2c3d4e[ARGS]{"a": 1}[TOOL_CALLS]f[CALL_ID]x[ARGS]{"a": 2}',
        None,
        (("f", '{"a": 1}'), ("f", '{"a": 2}')),
    ),
    Sample(
        "newer: text before and after",
        'I look. [TOOL_CALLS]f[ARGS]{"a": {"b": "}"}} Now wait.',
        "I look.  Now wait.",
        (("f", '{"a": {"b": "}"}}'),),
    ),
    Sample("newer: broken off in the name", "[TOOL_CALLS]get_w", "[TOOL_CALLS]get_w"),
    Sample("newer: broken off before the arguments", "[TOOL_CALLS]f[ARGS", "[TOOL_CALLS]f[ARGS"),
    Sample(
        "newer: broken off in the arguments",
        '[TOOL_CALLS]f[ARGS]{"a": tr',
        None,
        (("f", '{"a": tr'),),
    ),
    Sample(
        "broken off in the second call",
        '[TOOL_CALLS] [{"name": "f", "arguments": {}}, {"name": "g", ',
        ', {"name": "g", ',
        (("f", "{}"),),
    ),
    Sample(
        "broken off after a call",
        '[TOOL_CALLS] [{"name": "f", "arguments": {}} ',
        None,
        (("f", "{}"),),
    ),
    Sample("an empty list", "[TOOL_CALLS] []", "[TOOL_CALLS] []"),
    Sample(
        "an item that is no call",
        '[TOOL_CALLS] [{"name": "f", "arguments": {}}, {"x": 1}]',
        ', {"x": 1}]',
        (("f", "{}"),),
    ),
    Sample("something else", "[TOOL_CALLS] (none)", "[TOOL_CALLS] (none)"),
]
