from .sample import Sample

SAMPLES = [
    Sample("no call", "The set [a] and <tool_tip>.", "The set [a] and <tool_tip>."),
    Sample(
        "one call",
        '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Paris"}}]',
        None,
        (("get_weather", '{"city": "Paris"}'),),
    ),
    Sample(
        "two calls, and the other marker",
        '<tool_call> [{"name": "f", "arguments": {"a": 1}},\n {"name": "g", "arguments": {}}]\n'
        "</tool_call>",
        None,
        (("f", '{"a": 1}'), ("g", "{}")),
    ),
    Sample(
        "text before and after",
        'Yes.\n<|tool_call|>[{"name": "f", "arguments": {}}] Done.',
        "Yes.\n Done.",
        (("f", "{}"),),
    ),
    Sample(
        "nested values",
        '<|tool_call|>[{"name": "f", "arguments": {"a": {"b": [[], [1, {"c": {}}]]}}}]',
        None,
        (("f", '{"a": {"b": [[], [1, {"c": {}}]]}}'),),
    ),
    Sample(
        "strings that look like syntax",
        r'<|tool_call|>[{"name": "f", "arguments": {"a": "}]<|tool_call|>", "b": "\"ü\n\u2028"}}]',
        None,
        (("f", r'{"a": "}]<|tool_call|>", "b": "\"ü\n\u2028"}'),),
    ),
    Sample("no arguments", '<|tool_call|>[{"name": "f"}]', None, (("f", "{}"),)),
    Sample(
        "no marker",
        ' [{"name": "f", "arguments": {}}]',
        None,
        (("f", "{}"),),
    ),
    Sample("a list in prose", '[{"name": "Ada"}] is JSON', '[{"name": "Ada"}] is JSON'),
    Sample("broken off in the marker", "<|tool", "<|tool"),
    Sample("broken off in the list", '<|tool_call|>[{"name"', '<|tool_call|>[{"name"'),
    Sample(
        "broken off in the arguments",
        '<|tool_call|>[{"name": "f", "arguments": {"a": -',
        None,
        (("f", '{"a": -'),),
    ),
]
