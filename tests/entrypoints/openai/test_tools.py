import json
from typing import Any

import pytest
from tests.entrypoints.openai.demo_api import (
    ASK_PARIS,
    ASK_WEATHER,
    GET_WEATHER,
    WITH_TOOLS,
    chat,
    refusal,
    stream_chat,
)

from quire.entrypoints.openai.options import ServerOptions
from quire.entrypoints.openai.protocol import ChatCompletionRequest
from quire.entrypoints.openai.tools import choose_tools

NAMED = {"type": "function", "function": {"name": "get_weather"}}
ALLOWED = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}
OTHER = {"type": "function", "function": {"name": "open_door"}}
WEATHER = {"location": "San Francisco, CA", "unit": "fahrenheit"}
CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("choice", "reason"),
    [("auto", "tool_calls"), ("required", "tool_calls"), (NAMED, "stop"), (ALLOWED, "tool_calls")],
    ids=["auto", "required", "named", "allowed"],
)
def test_a_call_whole_and_streamed(choice: Any, reason: str) -> None:
    body: dict[str, Any] = {
        "messages": ASK_WEATHER,
        "tools": [GET_WEATHER, OTHER],
        "tool_choice": choice,
    }
    [whole] = chat(WITH_TOOLS, **body)["choices"]
    assert (whole["finish_reason"], whole["message"]["content"]) == (reason, None)
    [call] = whole["message"]["tool_calls"]
    assert call["id"].startswith("chatcmpl-tool-")
    assert (call["type"], call["function"]["name"]) == ("function", "get_weather")
    assert json.loads(call["function"]["arguments"]) == WEATHER

    choices = [chunk["choices"][0] for chunk in stream_chat(WITH_TOOLS, **body)]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    first, *others = [call for choice in choices for call in choice["delta"].get("tool_calls", ())]
    assert set(first) == {"index", "id", "type", "function"}
    assert first["function"] == {"name": "get_weather", "arguments": ""}
    assert all(set(other) == {"index", "function"} for other in others)
    pieces = [other["function"]["arguments"] for other in others]
    assert len(pieces) > 1
    assert "".join(pieces) == call["function"]["arguments"]
    assert choices[-1]["finish_reason"] == reason
    assert not any(choice["delta"].get("content") for choice in choices)


def test_auto_is_the_default_and_may_answer() -> None:
    [choice] = chat(WITH_TOOLS, messages=ASK_WEATHER, tools=[GET_WEATHER])["choices"]
    assert choice["message"]["tool_calls"]
    [choice] = chat(WITH_TOOLS, messages=ASK_PARIS, tools=[OTHER])["choices"]
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"]


def test_none_offers_nothing() -> None:
    plain = chat(messages=ASK_WEATHER)
    told = chat(messages=ASK_WEATHER, tools=[GET_WEATHER], tool_choice="none")
    assert told["usage"]["prompt_tokens"] == plain["usage"]["prompt_tokens"]
    assert told["choices"] == plain["choices"]


def test_one_call_of_several() -> None:
    messages = [{"role": "user", "content": "What's the weather in London and Paris?"}]
    body: dict[str, Any] = {"messages": messages, "tools": [GET_WEATHER]}
    [choice] = chat(WITH_TOOLS, **body)["choices"]
    assert len(choice["message"]["tool_calls"]) == 2
    [choice] = chat(WITH_TOOLS, **body, parallel_tool_calls=False)["choices"]
    assert len(choice["message"]["tool_calls"]) == 1
    chunks = stream_chat(WITH_TOOLS, **body, parallel_tool_calls=False)
    calls = [
        call
        for chunk in chunks
        for choice in chunk["choices"]
        for call in choice["delta"].get("tool_calls", ())
    ]
    assert {call["index"] for call in calls} == {0}


def test_the_result_of_a_call_goes_back() -> None:
    [choice] = chat(WITH_TOOLS, messages=ASK_WEATHER, tools=[GET_WEATHER])["choices"]
    [call] = choice["message"]["tool_calls"]
    messages = [
        *ASK_WEATHER,
        choice["message"] | {"refusal": None, "audio": None, "function_call": None},
        {"role": "tool", "tool_call_id": call["id"], "content": '{"status": "sunny"}'},
    ]
    [choice] = chat(WITH_TOOLS, messages=messages, tools=[GET_WEATHER])["choices"]
    assert "sunny" in choice["message"]["content"]


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"tools": []}, "tools", "tools=[] offers nothing"),
        ({"tool_choice": "auto"}, "tool_choice", "needs tools"),
        ({"tool_choice": NAMED}, "tool_choice", "needs tools"),
        ({"tools": [OTHER], "tool_choice": NAMED}, "tool_choice", "tools has only open_door"),
        ({"tools": [GET_WEATHER, GET_WEATHER]}, "tools[1].function.name", "earlier tool"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].type", "'function'"),
        ({"tools": [OTHER], "tool_choice": "any"}, "tool_choice", "not valid"),
        (
            {"tools": [OTHER], "response_format": {"type": "json_object"}},
            "response_format",
            'tool_choice="none"',
        ),
        (
            {"tools": [{"function": {"name": "f", "parameters": {"type": "string"}}}]},
            "tools[0].function.parameters",
            "must be 'object'",
        ),
    ],
    ids=str,
)
def test_mistakes(fields: dict[str, Any], param: str, message: str) -> None:
    error = refusal(CHAT, {"messages": ASK_WEATHER, **fields}, WITH_TOOLS)
    assert error["param"] == param
    assert message in error["message"]


def test_auto_names_both_flags_a_server_lacks() -> None:
    error = refusal(CHAT, {"messages": ASK_WEATHER, "tools": [GET_WEATHER]})
    assert error["param"] == "tool_choice"
    assert "--enable-auto-tool-choice" in error["message"]
    assert "--tool-call-parser" in error["message"]


def test_schemas_with_references_can_be_forced() -> None:
    parameters = {
        "type": "object",
        "properties": {"unit": {"$ref": "#/$defs/Unit"}},
        "required": ["unit"],
        "$defs": {"Unit": {"enum": ["celsius"], "description": "start ::= x"}},
    }
    function = {"name": "set_unit", "parameters": parameters, "strict": True}
    tools = [{"type": "function", "function": function}]
    choices: list[Any] = ["required", {"type": "function", "function": {"name": "set_unit"}}]
    for choice in choices:
        answer = chat(messages=ASK_WEATHER, tools=tools, tool_choice=choice)
        [call] = answer["choices"][0]["message"]["tool_calls"]
        assert json.loads(call["function"]["arguments"]) == {"unit": "celsius"}


def test_a_function_without_arguments_gets_none() -> None:
    answer = chat(messages=ASK_WEATHER, tools=[OTHER], tool_choice="required")
    [call, *_] = answer["choices"][0]["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {}


def test_a_call_that_is_cut_off_ended_by_its_length() -> None:
    body: dict[str, Any] = {"tools": [GET_WEATHER], "tool_choice": "required", "max_tokens": 15}
    [choice] = chat(messages=ASK_WEATHER, **body)["choices"]
    assert choice["finish_reason"] == "length"
    [call] = choice["message"]["tool_calls"]
    assert call["function"]["arguments"].startswith('{"')


def test_arguments_are_closed_unless_the_schema_opens_them() -> None:
    def forced(parameters: dict[str, Any]) -> Any:
        tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
        choice = {"type": "function", "function": {"name": "f"}}
        request = ChatCompletionRequest.model_validate(
            {"messages": ASK_PARIS, "tools": [tool], "tool_choice": choice}
        )
        structure = choose_tools(request, ServerOptions()).structure
        assert structure is not None
        return structure["json"].get("additionalProperties")

    assert forced({"properties": {}}) is False
    assert forced({"properties": {}, "additionalProperties": True}) is True
    assert forced({"properties": {}, "patternProperties": {}}) is None
