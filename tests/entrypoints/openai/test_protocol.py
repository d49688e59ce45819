import json
from typing import Any

import pytest
from tests.entrypoints.openai.demo_api import ASK_PARIS, PARIS, answer, refusal

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
BASES = {COMPLETIONS: {"prompt": "x"}, CHAT: {"messages": ASK_PARIS}}
ACCEPTED: dict[str, Any] = {
    "user": "me",
    "metadata": {"a": "b"},
    "service_tier": "auto",
    "safety_identifier": "me",
    "prompt_cache_key": "me",
    "session_id": "one",
    "best_of": None,
    "logit_bias": None,
    "guided_json": None,
    "stream_interval": 1,
    "kv_transfer_params": {},
}
REFUSED: list[tuple[str, Any]] = [
    ("guided_json", {"type": "object"}),
    ("guided_regex", "a+"),
    ("prompt_embeds", "AAAA"),
    ("logprob_token_ids", [1]),
    ("kv_transfer_params", {"a": 1}),
    ("thinking_token_budget", 5),
    ("repetition_detection", {}),
    ("stream_interval", 2),
    ("vllm_xargs", {"a": 1}),
    ("priority", 1),
    ("service_tier", "flex"),
]
REFUSED_CHAT: list[tuple[str, Any]] = [
    ("audio", {"voice": "alloy"}),
    ("modalities", ["text", "audio"]),
    ("functions", [{"name": "f"}]),
    ("function_call", "auto"),
    ("store", True),
    ("prediction", {"type": "content", "content": "x"}),
    ("reasoning_effort", "high"),
    ("documents", [{"title": "t", "text": "x"}]),
    ("mm_processor_kwargs", {"a": 1}),
    ("chat_template", "{{ messages }}"),
]


@pytest.mark.parametrize("path", BASES)
def test_fields_without_meaning_are_accepted(path: str) -> None:
    body = BASES[path] | ACCEPTED | {"max_tokens": 1}
    if path == CHAT:
        del body["best_of"]
        body |= {"store": False, "modalities": ["text"], "reasoning_effort": None}
    assert answer(path, body)["choices"]


@pytest.mark.parametrize("path", BASES)
@pytest.mark.parametrize(("name", "value"), REFUSED, ids=lambda value: str(value))
def test_fields_that_cannot_be_honoured_are_refused(path: str, name: str, value: Any) -> None:
    error = refusal(path, BASES[path] | {name: value})
    assert error["param"] == name
    assert name in error["message"]


@pytest.mark.parametrize(("name", "value"), REFUSED_CHAT, ids=lambda value: str(value))
def test_chats_refuse_more(name: str, value: Any) -> None:
    error = refusal(CHAT, BASES[CHAT] | {name: value})
    assert error["param"] == name
    assert name in error["message"]


def test_a_suffix_is_refused() -> None:
    assert refusal(COMPLETIONS, {"prompt": "x", "suffix": "y"})["param"] == "suffix"


def test_unknown_fields_are_refused_with_a_hint() -> None:
    error = refusal(COMPLETIONS, {"prompt": "x", "temprature": 1})
    assert error["param"] == "temprature"
    assert error["message"] == "There is no field 'temprature'. Did you mean 'temperature'?"
    error = refusal(CHAT, BASES[CHAT] | {"stream": True, "stream_options": {"usage": True}})
    assert error["param"] == "stream_options.usage"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": 5}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", 5]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": "x", "max_tokens": "7"}, "max_tokens"),
        ({"prompt": "x", "max_tokens": 1.5}, "max_tokens"),
        ({"prompt": "x", "n": True}, "n"),
        ({"prompt": "x", "stop": [5]}, "stop"),
        ({"prompt": "x", "logit_bias": {"a": 1}}, None),
        ({"prompt": "x", "logit_bias": [1]}, "logit_bias"),
        ({"prompt": "x", "temperature": 3}, "temperature"),
        ({"prompt": "x", "top_p": 0}, "top_p"),
        ({"prompt": "x", "logprobs": 21}, "logprobs"),
        ({"prompt": "x", "n": 0}, "n"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "x", "best_of": 2}, "best_of"),
        ({"prompt": "x", "request_id": "a b"}, "request_id"),
        ({"prompt": "x", "stream_options": {}}, "stream_options"),
        ({"prompt": "x", "stream": True, "prompt_logprobs": 1}, "prompt_logprobs"),
        ({"prompt": "x", "response_format": {"type": "xml"}}, "response_format.type"),
        ({"prompt": "\ud800"}, None),
        ({"prompt": ["x", "\ud800"], "stream": True}, "prompt"),
        ({"prompt": "x", "truncate_prompt_tokens": 0}, "prompt"),
        ({"prompt": "x", "top_k": 2**62}, "top_k"),
        ({}, "prompt"),
    ],
    ids=str,
)
def test_wrong_values_are_refused(body: dict[str, Any], param: str | None) -> None:
    assert refusal(COMPLETIONS, json.dumps(body).encode())["param"] == param


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"5", b"null", b'{"prompt": NaN}'])
def test_what_is_no_object_is_refused(body: bytes) -> None:
    assert refusal(COMPLETIONS, body)["message"]


def test_an_empty_or_too_long_prompt_is_refused() -> None:
    assert "empty" in refusal(COMPLETIONS, {"prompt": ""})["message"]
    assert "512" in refusal(COMPLETIONS, {"prompt": [5] * 512})["message"]
    error = refusal(COMPLETIONS, {"prompt": ["x", "x " * 600], "stream": True})
    assert "prompt[1] has" in error["message"]


def test_too_many_prompts_are_refused() -> None:
    error = refusal(COMPLETIONS, {"prompt": [PARIS] * 3}, {"max_prompts": 2})
    assert error["message"] == "prompt has 3 prompts, but 2 are allowed."
