"""The chat templates in examples/, rendered by transformers as a tokenizer renders its own."""

import json
from pathlib import Path
from typing import Any

import pytest
from jinja2.exceptions import TemplateError
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather",
        "parameters": {"type": "object", "properties": {"location": {"type": "string"}}},
    },
}
SYSTEM = {"role": "system", "content": "Be brief."}
HELLO = {"role": "user", "content": " Hello "}
HI = {"role": "assistant", "content": "Hi!"}
PREAMBLE = (
    "<s><|start_header_id|>system<|end_header_id|>\n\n{ipython}"
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
)
LLAMA = PREAMBLE.format(ipython="")
WITH_TOOLS = PREAMBLE.format(ipython="Environment: ipython\n")
FORM = (
    'Respond in the format {"name": function name, "parameters": dictionary of argument name and '
    f"its value}}. Do not use variables.\n\n{json.dumps(TOOL, indent=4)}\n\n"
)


def turn(role: str, text: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>"


def call(name: str, arguments: object) -> dict[str, Any]:
    return {"id": "x", "type": "function", "function": {"name": name, "arguments": arguments}}


def rendered(template: str, messages: list[dict[str, Any]], **variables: Any) -> str:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(BPE()), bos_token="<s>", eos_token="</s>"
    )
    text = (EXAMPLES / template).read_text()
    variables = {"add_generation_prompt": True, **variables}
    out = tokenizer.apply_chat_template(messages, chat_template=text, tokenize=False, **variables)
    assert isinstance(out, str)
    return out


def llama(messages: list[dict[str, Any]], **variables: Any) -> str:
    return rendered("tool_chat_template_llama3_json.jinja", messages, **variables)


def test_llama_conversation() -> None:
    assert llama([SYSTEM, HELLO, HI, HELLO]) == (
        f"{LLAMA}Be brief.<|eot_id|>"
        + turn("user", "Hello")
        + turn("assistant", "Hi!")
        + turn("user", "Hello")
        + "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert llama([HELLO], add_generation_prompt=False, tools=[]) == (
        f"{LLAMA}<|eot_id|>" + turn("user", "Hello")
    )


def test_llama_takes_another_date() -> None:
    assert "Today Date: 1 May 2025\n\n" in llama([HELLO], date_string="1 May 2025")


def test_llama_lists_tools_in_the_first_message_of_the_user() -> None:
    out = llama([SYSTEM, HELLO, HI, HELLO], tools=[TOOL], add_generation_prompt=False)
    asked = (
        "Given the following functions, please respond with a JSON for a function call with its "
        f"proper arguments that best answers the given prompt.\n\n{FORM}Hello"
    )
    assert out == (
        f"{WITH_TOOLS}Be brief.<|eot_id|>"
        + turn("user", asked)
        + turn("assistant", "Hi!")
        + turn("user", "Hello")
    )


@pytest.mark.parametrize(
    ("messages", "variables"),
    [([SYSTEM, HELLO], {"tools_in_user_message": False}), ([SYSTEM, HI], {}), ([SYSTEM], {})],
)
def test_llama_lists_tools_in_the_system_message(
    messages: list[dict[str, Any]], variables: dict[str, Any]
) -> None:
    out = llama(messages, tools=[TOOL], add_generation_prompt=False, **variables)
    opening = (
        f"{WITH_TOOLS}You have access to the following functions. To call a function, please "
        f"respond with JSON for a function call. {FORM}Be brief.<|eot_id|>"
    )
    assert out == opening + "".join(
        turn(message["role"], message["content"].strip()) for message in messages[1:]
    )


def test_llama_calls_and_their_results() -> None:
    calls = [call("get_weather", {"location": "Rome"}), call("get_time", '{"zone": "CET"}')]
    conversation = [
        HELLO,
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "sunny", "tool_call_id": "x"},
        {"role": "ipython", "content": {"hour": 7}},
    ]
    out = llama(conversation, add_generation_prompt=False)
    assert out == (
        f"{LLAMA}<|eot_id|>"
        + turn("user", "Hello")
        + turn(
            "assistant",
            '{"name": "get_weather", "parameters": {"location": "Rome"}}; '
            '{"name": "get_time", "parameters": {"zone": "CET"}}',
        )
        + turn("ipython", "sunny")
        + turn("ipython", '{"hour": 7}')
    )


def test_llama_takes_text_in_parts_and_nothing_else() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert turn("user", "a\nb") in llama([{"role": "user", "content": parts}])
    with pytest.raises(TemplateError, match="a part of type image"):
        llama([{"role": "user", "content": [{"type": "image"}]}])


def test_both_names_of_the_llama_template_are_one() -> None:
    names = ("tool_chat_template_llama3_json.jinja", "tool_chat_template_llama3.1_json.jinja")
    first, second = ((EXAMPLES / name).read_bytes() for name in names)
    assert first == second


def test_llava_conversation() -> None:
    question = {"role": "user", "content": "<image>\nWhat is this?"}
    assert rendered("template_llava.jinja", [question]) == (
        "<s>USER: <image>\nWhat is this?\nASSISTANT:"
    )
    out = rendered("template_llava.jinja", [SYSTEM, question, HI, {**HELLO, "content": "Why?"}])
    assert out == (
        "<s>Be brief.\nUSER: <image>\nWhat is this?\nASSISTANT: Hi!</s>\nUSER: Why?\nASSISTANT:"
    )


def test_llava_puts_images_before_text() -> None:
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "data:,"}},
        {"type": "image"},
    ]
    assert rendered("template_llava.jinja", [{"role": "user", "content": parts}]) == (
        "<s>USER: <image>\n<image>\nWhat is this?\nASSISTANT:"
    )
    with pytest.raises(TemplateError, match="a part of type audio"):
        rendered("template_llava.jinja", [{"role": "user", "content": [{"type": "audio"}]}])


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([HI], "message 0 is of role assistant, not user"),
        ([SYSTEM, HELLO, HELLO], "message 2 is of role user, not assistant"),
        ([HELLO, HI, {"role": "tool", "content": "x"}], "message 2 is of role tool, not user"),
        ([HELLO, SYSTEM], "message 1 is of role system, not assistant"),
    ],
)
def test_llava_roles_take_turns(messages: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        rendered("template_llava.jinja", messages)


def test_chatml_conversation() -> None:
    assert rendered("template_chatml.jinja", [SYSTEM, {**HELLO, "content": "Hello"}]) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
