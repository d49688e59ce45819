from .sample import Sample, function

TOOLS = [
    function(
        "typed",
        s={"type": "string"},
        i={"type": "integer"},
        n={"type": "number"},
        b={"type": "boolean"},
        o={"type": "object"},
        a={"type": "array", "items": {"type": "integer"}},
        maybe={"anyOf": [{"type": "integer"}, {"type": "null"}]},
        text_or_none={"type": ["string", "null"]},
        level={"enum": [1, 2]},
        color={"enum": ["red", "7"]},
        anything={},
    )
]


def call(name: str, **parameters: str) -> str:
    """A call as the models write it."""
    tags = "".join(
        f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in parameters.items()
    )
    return f"<tool_call>\n<function={name}>\n{tags}</function>\n</tool_call>"


SAMPLES = [
    Sample("no call", "If a <func or <tool_c> b", "If a <func or <tool_c> b"),
    Sample(
        "one call",
        call("get_weather", city="Paris"),
        None,
        (("get_weather", '{"city": "Paris"}'),),
    ),
    Sample(
        "two calls",
        call("f", a="x") + "\n" + call("g"),
        None,
        (("f", '{"a": "x"}'), ("g", "{}")),
    ),
    Sample(
        "text before and after",
        "I look.\n\n" + call("f") + "\nDone.",
        "I look.\n\n\nDone.",
        (("f", "{}"),),
    ),
    Sample(
        "typed values",
        call("typed", s="1", i="-2", n="2.50", b="True", maybe="null", level="2", color="7"),
        None,
        (
            (
                "typed",
                '{"s": "1", "i": -2, "n": 2.5, "b": true, "maybe": null, "level": 2, "color": "7"}',
            ),
        ),
    ),
    Sample(
        "nested values",
        call(
            "typed", o='{"x": [1, {"y": null}]}', a="[1,\n 2]", anything='{"z": {}}', unknown="[1]"
        ),
        None,
        (
            (
                "typed",
                '{"o": {"x": [1, {"y": null}]}, "a": [1, 2], "anything": {"z": {}}, '
                '"unknown": "[1]"}',
            ),
        ),
    ),
    Sample(
        "values that Python would write",
        call("typed", o="{'x': True, 'y': None}", maybe="None", text_or_none="None", b="false"),
        None,
        (
            (
                "typed",
                '{"o": {"x": true, "y": null}, "maybe": null, "text_or_none": null, "b": false}',
            ),
        ),
    ),
    Sample(
        "values that are not what the schema wants",
        call("typed", i="many", n="NaN", b="yes", o="[1]", a="{oops", anything="1e999"),
        None,
        (
            (
                "typed",
                '{"i": "many", "n": "NaN", "b": "yes", "o": "[1]", "a": "{oops", '
                '"anything": "1e999"}',
            ),
        ),
    ),
    Sample(
        "strings that look like syntax",
        call("f", a='"}</func> <parameter=b> \\n é雪', b="null", c=""),
        None,
        (("f", r'{"a": "\"}</func> <parameter=b> \\n é雪", "b": "null", "c": ""}'),),
    ),
    Sample(
        "line breaks, of which one at each end is not the value's",
        call("f", code="\ndef f():\n\treturn 1\n"),
        None,
        (("f", r'{"code": "\ndef f():\n\treturn 1\n"}'),),
    ),
    Sample(
        "on one line",
        "<tool_call><function=f><parameter=a>x y</parameter></function></tool_call>",
        None,
        (("f", '{"a": "x y"}'),),
    ),
    Sample(
        "no outer tag",
        "<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>",
        None,
        (("f", '{"a": "1"}'),),
    ),
    Sample(
        "parameters that do not end",
        "<tool_call><function=f>\n<parameter=a>\n1\n<parameter=b>\n2\n</function></tool_call>",
        None,
        (("f", '{"a": "1", "b": "2"}'),),
    ),
    Sample("broken off in a tag", "<tool_call>\n<funct", "<tool_call>\n<funct"),
    Sample(
        "broken off in a value",
        "Hm <tool_call>\n<function=f>\n<parameter=a>\n1",
        "Hm <tool_call>\n<function=f>\n<parameter=a>\n1",
    ),
    Sample(
        "broken off after a call",
        call("f", a="x") + "\n<tool_call>\n<function=g>\n",
        "\n<tool_call>\n<function=g>\n",
        (("f", '{"a": "x"}'),),
    ),
    Sample(
        "something else in the tags",
        "<tool_call>{}</tool_call> <function=f>what</function>",
        "<tool_call>{}</tool_call> <function=f>what</function>",
    ),
]
