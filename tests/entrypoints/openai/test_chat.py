import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.entrypoints.openai.demo_api import ASK_PARIS, chat, demo_engine, refusal, stream_chat

import quire
from quire import ChatTemplateError, CompletionOutput, Engine, RequestOutput
from quire.entrypoints.openai.chat_choices import ChatChunks, ChatForm, whole_answer
from quire.entrypoints.openai.errors import as_api_error
from quire.entrypoints.openai.logprobs import TokenNames
from quire.entrypoints.openai.protocol import ChatCompletionRequest
from quire.entrypoints.parsers import Chain, reasoning_parser

ANSWER = "The capital of France is Paris."
CHAT = "/v1/chat/completions"


def content(answer: dict[str, Any]) -> str:
    [choice] = answer["choices"]
    return choice["message"]["content"]


def text_of(chunks: list[dict[str, Any]], index: int = 0) -> str:
    return "".join(
        choice["delta"].get("content", "")
        for chunk in chunks
        for choice in chunk["choices"]
        if choice["index"] == index
    )


def test_an_answer() -> None:
    answer = chat(messages=ASK_PARIS)
    assert answer["id"].startswith("chatcmpl-")
    assert (answer["object"], answer["model"]) == ("chat.completion", "demo")
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": ANSWER},
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": None,
        }
    ]


def test_a_stream_is_the_whole_answer_in_pieces() -> None:
    *chunks, last = stream_chat(messages=ASK_PARIS, stream_options={"include_usage": True})
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert all(set(choice["delta"]) == {"content"} for choice in choices[1:-1])
    assert (choices[-1]["delta"], choices[-1]["finish_reason"]) == ({}, "stop")
    assert text_of(chunks) == ANSWER
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert (last["choices"], last["usage"]) == ([], chat(messages=ASK_PARIS)["usage"])


def test_several_choices() -> None:
    body: dict[str, Any] = {"messages": ASK_PARIS, "n": 3, "temperature": 0.01}
    answer = chat(**body)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    chunks = stream_chat(**body)
    assert [text_of(chunks, index) for index in range(3)] == [ANSWER] * 3
    ends = [c["choices"][0]["index"] for c in chunks if c["choices"][0]["finish_reason"]]
    assert sorted(ends) == [0, 1, 2]


def test_logprobs() -> None:
    body: dict[str, Any] = {"messages": ASK_PARIS, "logprobs": True, "top_logprobs": 2}
    [choice] = chat(**body, return_token_ids=True)["choices"]
    told = choice["logprobs"]["content"]
    # the last one is the end token, which the text has not
    assert "".join(one["token"] for one in told[:-1]) == ANSWER
    assert len(told) == len(choice["token_ids"])
    assert all(len(one["top_logprobs"]) == 2 for one in told)
    assert bytes(byte for one in told[:-1] for byte in one["bytes"]).decode() == ANSWER
    streamed = [
        one
        for chunk in stream_chat(**body)
        for one in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert [one["token"] for one in streamed] == [one["token"] for one in told]


def test_the_length_by_both_names() -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        body: dict[str, Any] = {"messages": ASK_PARIS, name: 2}
        answer = chat(**body)
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"]["completion_tokens"] == 2


def test_messages_of_parts_and_roles() -> None:
    parts = [{"type": "text", "text": "What is the capital of France?"}]
    assert content(chat(messages=[{"role": "user", "content": parts}])) == ANSWER
    for role in ("system", "developer"):
        messages = [{"role": role, "content": "You are kind."}, *ASK_PARIS]
        prompts = chat(messages=messages, return_prompt_text=True)["prompt_text"]
        assert prompts.startswith("<|im_start|>system\nYou are kind.")
    thought = {"role": "assistant", "content": "Paris", "reasoning": "Hm.", "name": None}
    assert chat(messages=[*ASK_PARIS, thought, *ASK_PARIS])["choices"]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:,"}},
        {"type": "input_audio", "input_audio": {}},
        {"type": "text"},
        {"text": "x"},
        {"type": []},
        5,
    ],
    ids=str,
)
def test_other_parts_are_refused(part: Any) -> None:
    messages = [{"role": "user", "content": ["a", part]}]
    assert refusal(CHAT, {"messages": messages})["param"] == "messages[0].content[1]"


@pytest.mark.parametrize(
    "messages",
    [[], "hi", [5], [{}], [{"role": "user"}], [{"role": 5, "content": "x"}], None],
    ids=str,
)
def test_no_conversations_are_refused(messages: Any) -> None:
    assert refusal(CHAT, {"messages": messages})["message"]


@pytest.mark.parametrize("calls", [5, [5], [{"function": 5}], [{"function": {"name": 5}}]], ids=str)
def test_earlier_calls_need_their_form(calls: Any) -> None:
    messages = [{"role": "assistant", "content": None, "tool_calls": calls}]
    assert refusal(CHAT, {"messages": messages})["param"] == "messages[0].tool_calls"


def test_arguments_of_earlier_calls_must_be_json() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{"}}
    messages = [*ASK_PARIS, {"role": "assistant", "tool_calls": [call]}]
    assert "no JSON" in refusal(CHAT, {"messages": messages})["message"]


@pytest.mark.parametrize("echo", [False, True])
def test_an_answer_goes_on_with_the_last_message(echo: bool) -> None:
    body: dict[str, Any] = {
        "messages": [*ASK_PARIS, {"role": "assistant", "content": "The capital of"}],
        "add_generation_prompt": False,
        "continue_final_message": True,
        "echo": echo,
    }
    expected = ANSWER if echo else ANSWER.removeprefix("The capital of")
    assert content(chat(**body)) == expected
    assert text_of(stream_chat(**body)) == expected


def test_a_generation_prompt_and_an_open_message_contradict() -> None:
    error = refusal(CHAT, {"messages": ASK_PARIS, "continue_final_message": True})
    assert "add_generation_prompt" in error["message"]


def test_templates_of_requests_need_trust() -> None:
    template = "{{ messages[0].content }} {{ x }}"
    body = {"messages": ASK_PARIS, "chat_template": template}
    error = refusal(CHAT, body)
    assert (error["param"], "--trust-request" in error["message"]) == ("chat_template", True)
    trusting = {"trust_request_chat_template": True}
    told = chat(trusting, **body, chat_template_kwargs={"x": "y"}, return_prompt_text=True)
    assert told["prompt_text"] == "What is the capital of France? y"
    error = refusal(CHAT, body | {"chat_template": "/etc/passwd"}, trusting)
    assert (error["param"], "root" in error["message"]) == ("chat_template", False)
    error = refusal(CHAT, body | {"chat_template": "{{ x.__class__.__mro__ }}"}, trusting)
    assert "refuses" in error["message"]


def test_documents_and_effort_go_to_templates_that_know_them() -> None:
    template = "{{ documents[0].text }} {{ reasoning_effort }}"
    told = chat(
        {"chat_template": template},
        messages=ASK_PARIS,
        documents=[{"title": "a", "text": "Once"}],
        reasoning_effort="low",
        return_prompt_text=True,
    )
    assert told["prompt_text"] == "Once low"


def test_what_templates_own_is_refused_as_a_variable() -> None:
    error = refusal(CHAT, {"messages": ASK_PARIS, "chat_template_kwargs": {"messages": []}})
    assert "chat_template_kwargs" in error["message"]


def test_json() -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    cities = {"city": {"enum": ["Rome", "Paris"]}}
    schema = {"type": "object", "properties": cities, "required": ["city"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "c", "schema": schema}}
    body: dict[str, Any] = {"messages": messages, "response_format": wanted, "max_tokens": 60}
    # a parser of reasoning does not take the form for thoughts
    for options in ({}, {"reasoning_parser": "deepseek_r1"}):
        [choice] = chat(options, **body)["choices"]
        text = choice["message"]["content"]
        assert choice["finish_reason"] == "length" or json.loads(text)["city"]
        assert text_of(stream_chat(options, **body)) == text
    error = refusal(
        CHAT, {"messages": messages, "response_format": {"type": "json_schema", "json_schema": {}}}
    )
    assert error["param"] == "response_format.json_schema.schema"


def test_beam_search() -> None:
    answer = chat(messages=ASK_PARIS, use_beam_search=True, n=2, max_tokens=12)
    assert answer["choices"][0]["message"]["content"] == ANSWER
    assert len(answer["choices"]) == 2


def test_the_prompt_is_told_if_asked() -> None:
    body: dict[str, Any] = {"return_token_ids": True, "return_prompt_text": True}
    told = chat(messages=ASK_PARIS, **body, prompt_logprobs=0)
    tokenizer = demo_engine().get_tokenizer()
    assert tokenizer.decode(told["prompt_token_ids"]) == told["prompt_text"]
    assert len(told["prompt_logprobs"]) == len(told["prompt_token_ids"])
    chunks = stream_chat(messages=ASK_PARIS, **body)
    assert [chunk for chunk in chunks if "prompt_text" in chunk][0]["prompt_token_ids"]
    tokens = [token for chunk in chunks for token in chunk["choices"][0].get("token_ids", ())]
    assert tokens == told["choices"][0]["token_ids"]


def test_truncated_conversations() -> None:
    answer = chat(messages=ASK_PARIS, truncate_prompt_tokens=5, max_tokens=1)
    assert answer["usage"]["prompt_tokens"] == 5


def test_a_model_without_a_template(tmp_path: Path) -> None:
    demo = Path(quire.__file__).parent / "models" / "demo"
    folder = tmp_path / "base"
    shutil.copytree(demo, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with Engine(folder, enforce_eager=True, use_tqdm_on_load=False) as engine:
        with pytest.raises(ChatTemplateError) as raised:
            engine.chat(ASK_PARIS)
    error = as_api_error(raised.value)
    assert (error.status, "--chat-template" in error.message) == (400, True)


THOUGHTS = "<think>Hm. Paris?</think>It is Paris."


def form(**fields: Any) -> ChatForm:
    request = ChatCompletionRequest.model_validate({"messages": ASK_PARIS, **fields})
    return ChatForm(
        request=request,
        parser=lambda: Chain(reasoning_parser("qwen3")(), None),
        names=TokenNames(None, as_ids=False),
        role="assistant",
        echo="",
        finishes_with_calls=False,
        one_call=False,
    )


def output(text: str, tokens: list[int], *, finished: bool) -> RequestOutput:
    reason = "stop" if finished else None
    one = CompletionOutput(0, text, tokens, finish_reason=reason)
    return RequestOutput("x", None, [1, 2], None, [one], finished)


@pytest.mark.parametrize("included", [True, False])
def test_reasoning_whole_and_streamed(included: bool) -> None:
    wanted = form(include_reasoning=included)
    whole = whole_answer(wanted, {}, output(THOUGHTS, [1], finished=True))
    message = whole["choices"][0]["message"]
    assert message.get("reasoning") == ("Hm. Paris?" if included else None)
    assert message["content"] == "It is Paris."
    chunks = ChatChunks(wanted, {})
    told = list(chunks.start())
    for index, letter in enumerate(THOUGHTS):
        last = index == len(THOUGHTS) - 1
        told += chunks.of(0, output(letter, [index], finished=last))
    deltas = [chunk["choices"][0]["delta"] for chunk in told]
    assert "".join(delta.get("reasoning", "") for delta in deltas) == message.get("reasoning", "")
    assert "".join(delta.get("content", "") for delta in deltas) == "It is Paris."


def test_outputs_that_piled_up_are_one() -> None:
    earlier, later = output("a", [1], finished=False), output("b", [2, 3], finished=True)
    earlier.outputs = [*earlier.outputs, CompletionOutput(1, "x", [9], finish_reason="stop")]
    both = earlier.followed_by(dataclasses.replace(later))
    assert both.finished
    assert [(one.index, one.text, one.token_ids) for one in both.outputs] == [
        (0, "ab", [1, 2, 3]),
        (1, "x", [9]),
    ]
    assert [one.finish_reason for one in both.outputs] == ["stop", "stop"]
