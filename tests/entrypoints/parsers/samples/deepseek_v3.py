from .sample import Sample

BEGIN, END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"


def call(name: str, arguments: str) -> str:
    return (
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{arguments}\n```"
        "<｜tool▁call▁end｜>"
    )


SAMPLES = [
    Sample("no call", "Code:\n```json\n{}\n```\n", "Code:\n```json\n{}\n```\n"),
    Sample(
        "one call",
        BEGIN + call("get_weather", '{"city": "Paris"}') + END,
        None,
        (("get_weather", '{"city": "Paris"}'),),
    ),
    Sample(
        "two calls",
        BEGIN + call("f", '{"a": 1}') + "\n" + call("g", "{}") + END,
        None,
        (("f", '{"a": 1}'), ("g", "{}")),
    ),
    Sample(
        "text before and after",
        "Let me see.\n" + BEGIN + call("f", "{}") + END + " Done.",
        "Let me see.\n Done.",
        (("f", "{}"),),
    ),
    Sample(
        "nested values over several lines",
        BEGIN + call("f", '{\n  "a": {"b": [1, {"c": []}]},\n  "d": 1e5\n}') + END,
        None,
        (("f", '{\n  "a": {"b": [1, {"c": []}]},\n  "d": 1e5\n}'),),
    ),
    Sample(
        "strings that look like syntax",
        BEGIN + call("f", r'{"a": "\n```<｜tool▁call▁end｜>", "b": "}\"{", "c": "深度"}') + END,
        None,
        (("f", r'{"a": "\n```<｜tool▁call▁end｜>", "b": "}\"{", "c": "深度"}'),),
    ),
    Sample(
        "no fence and no outer marker",
        '<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n{"a": 1}<｜tool▁call▁end｜>',
        None,
        (("f", '{"a": 1}'),),
    ),
    Sample("broken off in a marker", "So <｜tool▁ca", "So <｜tool▁ca"),
    Sample(
        "broken off in the name",
        BEGIN + "<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_w",
        BEGIN + "<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_w",
    ),
    Sample(
        "broken off in the arguments",
        BEGIN + '<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{"a": "b',
        None,
        (("f", '{"a": "b'),),
    ),
    Sample(
        "broken off in the fence",
        BEGIN + '<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{"a": 1}\n``',
        "\n``",
        (("f", '{"a": 1}'),),
    ),
    Sample("markers in the wrong order", f"{END}a{BEGIN}b", f"{END}a{BEGIN}b"),
]
