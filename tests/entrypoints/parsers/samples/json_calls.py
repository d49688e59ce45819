from .sample import Sample

REQUIRED = [
    Sample("no call", "No.", "No."),
    Sample(
        "one call",
        '[{"name": "f", "parameters": {"a": "x"}}]',
        None,
        (("f", '{"a": "x"}'),),
    ),
    Sample(
        "two calls",
        '[\n{"name": "f", "parameters": {"a": [1]}} , {"name": "g", "parameters": {}}\n]\n',
        None,
        (("f", '{"a": [1]}'), ("g", "{}")),
    ),
    Sample(
        "text after",
        '[{"name": "f", "parameters": {}}] Done.',
        " Done.",
        (("f", "{}"),),
    ),
    Sample("text before", 'Here: [{"name": "f"}]', 'Here: [{"name": "f"}]'),
    Sample(
        "strings that look like syntax",
        r'[{"name": "f", "parameters": {"a": "}]\"", "b": {"]": "ß\n"}}}]',
        None,
        (("f", r'{"a": "}]\"", "b": {"]": "ß\n"}}'),),
    ),
    Sample("no arguments", '[{"name": "f"}]', None, (("f", "{}"),)),
    Sample("broken off in the name", '[{"name": "f', '[{"name": "f'),
    Sample(
        "broken off in the arguments",
        '[{"name": "f", "parameters": {"a": 1, "b',
        None,
        (("f", '{"a": 1, "b'),),
    ),
]

NAMED = [
    Sample("no call", "No {}.", "No {}."),
    Sample("arguments", '{"a": "x", "b": [{}]}', None, (("chosen", '{"a": "x", "b": [{}]}'),)),
    Sample("no arguments", " {}\n", None, (("chosen", "{}"),)),
    Sample("text after", "{} Done.", " Done.", (("chosen", "{}"),)),
    Sample("a string", r'{"a": "}\"é\n"}', None, (("chosen", r'{"a": "}\"é\n"}'),)),
    Sample("broken off", '{"a": {"b": nul', None, (("chosen", '{"a": {"b": nul'),)),
]
