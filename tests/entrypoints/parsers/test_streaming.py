"""What is given out when: nothing waits longer than it must."""

import json
import time

import pytest
from tests.entrypoints.parsers.samples.sample import message, pieces

from quire.entrypoints.parsers import (
    Arguments,
    CallStart,
    Chain,
    Content,
    Event,
    Parser,
    Reasoning,
    collect,
    reasoning_parser,
    tool_parser,
)


def feed(parser: Parser, *texts: str) -> list[list[Event]]:
    return [parser.feed(text) for text in texts]


def test_content_comes_at_once_and_a_possible_marker_waits() -> None:
    parser = tool_parser("hermes")([])
    assert feed(parser, "a <b", "> <too", "thing>") == [
        [Content("a <b")],
        [Content("> ")],
        [Content("<toothing>")],
    ]
    assert parser.finish() == []


def test_arguments_come_as_they_grow() -> None:
    parser = tool_parser("llama3_json")([])
    texts = ('{"name": "f"', ', "parameters": {', '"a": "x', "y", '"}', "}")
    assert feed(parser, *texts) == [
        [],
        [CallStart(0, "f"), Arguments(0, "{")],
        [Arguments(0, '"a": "x')],
        [Arguments(0, "y")],
        [Arguments(0, '"}')],
        [],
    ]


def test_calls_are_numbered() -> None:
    parser = tool_parser("mistral")([])
    events = parser.feed("[TOOL_CALLS]f[ARGS]{}[TOOL_CALLS]g[ARGS]{}")
    assert events == [CallStart(0, "f"), Arguments(0, "{}"), CallStart(1, "g"), Arguments(1, "{}")]


@pytest.mark.parametrize(
    ("name", "first", "rest"),
    [
        ("pythonic", "[f(a=1)", "]"),
        ("qwen3_coder", "<function=f>\n<parameter=a>\n1\n</parameter>\n", "</function>"),
    ],
)
def test_arguments_that_are_not_json_come_in_one_piece(name: str, first: str, rest: str) -> None:
    parser = tool_parser(name)([])
    assert parser.feed(first) == []
    start, arguments = parser.feed(rest)
    assert start == CallStart(0, "f")
    assert isinstance(arguments, Arguments)


def test_prose_in_brackets_does_not_wait_for_their_end() -> None:
    assert tool_parser("pythonic")([]).feed("[f(1) and") == [Content("[f(1"), Content(") and")]
    assert tool_parser("llama3_json")([]).feed("{x and") == [Content("{"), Content("x and")]


def test_reasoning_comes_at_once_except_its_last_line_breaks() -> None:
    parser = reasoning_parser("deepseek_r1")()
    assert feed(parser, "\nHm", ".\n", "\nSo", "\n</thi", "nk>\n", "\nYes") == [
        [Reasoning("Hm")],
        [Reasoning(".")],
        [Reasoning("\n\nSo")],
        [],
        [],
        [Content("Yes")],
    ]


def test_a_chain_may_lack_either_parser() -> None:
    text = '<think>a</think>b<tool_call>{"name": "f"}</tool_call>'
    tools, reasoning = tool_parser("hermes")([]), reasoning_parser("qwen3")()
    assert message(Chain(None, None), [text]).content == text
    assert message(Chain(None, tools), [text]).content == "<think>a</think>b"
    assert message(Chain(reasoning, None), [text]).reasoning == "a"


def test_a_chain_sees_special_tokens_if_one_of_its_parsers_must() -> None:
    reasoning = reasoning_parser("qwen3")()
    assert not Chain(reasoning, None).special_tokens
    assert not Chain(reasoning, tool_parser("llama3_json")([])).special_tokens
    assert Chain(reasoning, tool_parser("mistral")([])).special_tokens


def test_events_make_a_message() -> None:
    events = [CallStart(0, "f"), Arguments(0, "{"), CallStart(1, "g"), Arguments(0, "}")]
    assert [call.arguments for call in collect(events).calls] == ["{}", ""]
    assert collect([]).content is None


LONG = {
    "deepseek_v3": "<｜tool▁calls▁begin｜>" * 2000,
    "granite": "[" + '{"name": "f", "arguments": {}}, ' * 1000,
    "hermes": "<tool_call>{" * 4000,
    "llama3_json": '{"name":"f","parameters":{},"x":' * 1500,
    "mistral": '[TOOL_CALLS][{"a":' * 2500,
    "pythonic": "[f(a=" * 10_000,
    "qwen3_coder": "<function=f>\n<parameter=a>\n" + "</par\n" * 8000,
}


@pytest.mark.parametrize("name", LONG)
def test_long_and_hostile_text_takes_time_in_proportion(name: str) -> None:
    text = LONG[name]
    start = time.monotonic()
    whole = message(tool_parser(name)([]), [text])
    assert message(tool_parser(name)([]), pieces(text, 16)) == whole
    assert time.monotonic() - start < 5


def test_json_of_any_depth_is_followed() -> None:
    deep = '{"a": ' + "[" * 20_000 + "]" * 20_000 + "}"
    whole = message(tool_parser("llama3_json")([]), [f'{{"name": "f", "parameters": {deep}}}'])
    assert whole.calls[0].arguments == deep


def test_deep_python_is_content() -> None:
    deep = "[f(a=" + "[" * 5000 + "]" * 5000 + ")]"
    assert message(tool_parser("pythonic")([]), [deep]).content == deep


@pytest.mark.parametrize("value", ["-" * 20_000 + "1", "1" + "+1" * 20_000, "9" * 5000])
def test_python_that_no_reader_takes_is_content(value: str) -> None:
    text = f"[f(a={value})]"
    assert message(tool_parser("pythonic")([]), [text]).content == text


@pytest.mark.parametrize("value", ["\ud800", '["\\ud800"]', '{"a": "\u2028\x00"}', "[" * 5000])
def test_arguments_in_tags_are_json_that_utf8_can_hold(value: str) -> None:
    tool = {"function": {"name": "f", "parameters": {"properties": {"a": {}}}}}
    text = f"<function=f><parameter=a>{value}</parameter></function>"
    [call] = message(tool_parser("qwen3_coder")([tool]), [text]).calls
    assert call.arguments.encode()
    assert "a" in json.loads(call.arguments)
