from typing import Any

import pytest

from quire import OptionError, RequestOutputKind, SamplingParams, StructuredOutputsParams
from quire.entrypoints.openai.errors import ApiError
from quire.entrypoints.openai.protocol import ChatCompletionRequest, CompletionRequest
from quire.entrypoints.openai.sampling import beam_params, chat_params, completion_params

MODELS = SamplingParams(temperature=0.3, top_k=7, repetition_penalty=1.1, max_tokens=99)


def completion(**fields: Any) -> SamplingParams:
    request = CompletionRequest.model_validate({"prompt": "x", **fields})
    return completion_params(request, MODELS)


def chat(*, special_tokens: bool = False, forced: Any = None, **fields: Any) -> SamplingParams:
    messages = [{"role": "user", "content": "x"}]
    request = ChatCompletionRequest.model_validate({"messages": messages, **fields})
    return chat_params(request, MODELS, forced, special_tokens=special_tokens)


def test_what_is_left_out_comes_from_the_model() -> None:
    params = completion(top_k=3, temperature=None)
    assert (params.temperature, params.top_k, params.repetition_penalty) == (0.3, 3, 1.1)
    assert completion().max_tokens == 16
    assert chat().max_tokens is None


def test_every_sampling_field_reaches_the_engine() -> None:
    fields: dict[str, Any] = {
        "n": 2,
        "presence_penalty": 1.0,
        "frequency_penalty": 0.5,
        "repetition_penalty": 1.5,
        "temperature": 0.9,
        "top_p": 0.8,
        "top_k": 5,
        "min_p": 0.1,
        "seed": 3,
        "stop": ["a"],
        "stop_token_ids": [4],
        "include_stop_str_in_output": True,
        "ignore_eos": True,
        "min_tokens": 2,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
        "allowed_token_ids": [1, 2],
        "bad_words": ["b"],
        "prompt_logprobs": 2,
    }
    for params in (completion(**fields, max_tokens=9), chat(**fields, max_tokens=9)):
        assert {name: getattr(params, name) for name in fields} == fields
        assert params.max_tokens == 9
    assert completion(logit_bias={"5": 200, "6": -1}).logit_bias == {5: 100.0, 6: -1.0}


def test_streams_are_deltas() -> None:
    assert completion(stream=True).output_kind is RequestOutputKind.DELTA
    assert chat().output_kind is RequestOutputKind.FINAL_ONLY


def test_logprobs_of_both_kinds() -> None:
    assert completion(logprobs=3, echo=True).prompt_logprobs == 3
    assert completion(logprobs=3).prompt_logprobs is None
    assert chat(logprobs=True).logprobs == 0
    assert chat(logprobs=True, top_logprobs=4).logprobs == 4
    with pytest.raises(ApiError, match="top_logprobs needs logprobs=true"):
        chat(top_logprobs=4)


def test_both_names_of_a_chats_length() -> None:
    assert chat(max_tokens=5).max_tokens == 5
    assert chat(max_tokens=5, max_completion_tokens=6).max_tokens == 6


def test_special_tokens_a_parser_needs_are_kept() -> None:
    assert chat(skip_special_tokens=True).skip_special_tokens
    assert not chat(skip_special_tokens=True, special_tokens=True).skip_special_tokens


def test_structures() -> None:
    schema = {"type": "object"}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": None}}
    assert completion(response_format=wanted).structured_outputs == StructuredOutputsParams(
        json=schema
    )
    json_object = StructuredOutputsParams(json_object=True)
    assert chat(response_format={"type": "json_object"}).structured_outputs == json_object
    assert chat(response_format={"type": "text"}).structured_outputs is None
    regex = StructuredOutputsParams(regex="a+")
    assert chat(structured_outputs={"regex": "a+"}).structured_outputs == regex
    assert chat(forced={"regex": "a+"}).structured_outputs == regex


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"response_format": {"type": "json_schema"}}, "needs json_schema"),
        ({"response_format": {"type": "text", "json_schema": {"schema": {}}}}, "has no json_schem"),
        (
            {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
            "both ask for a structure",
        ),
        ({"structured_outputs": {"regx": "a"}}, "Did you mean 'regex'"),
        ({"structured_outputs": {}}, "exactly one of"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
        ({"temperature": 0, "n": 2}, "n must be 1"),
        ({"length_penalty": 2.0}, "length_penalty needs use_beam_search"),
        ({"early_stopping": True}, "early_stopping needs use_beam_search"),
    ],
)
def test_structures_and_numbers_that_contradict(fields: dict[str, Any], message: str) -> None:
    with pytest.raises((ApiError, OptionError), match=message):
        completion(**fields)


def test_beams() -> None:
    request = CompletionRequest.model_validate(
        {
            "prompt": "x",
            "use_beam_search": True,
            "n": 3,
            "length_penalty": 0.5,
            "early_stopping": True,
            "ignore_eos": True,
            "top_p": 1.0,
            "stop": [],
        }
    )
    params = beam_params(request, 9)
    assert (params.beam_width, params.max_tokens, params.temperature) == (3, 9, 0.0)
    assert (params.length_penalty, params.early_stopping, params.ignore_eos) == (0.5, True, True)


@pytest.mark.parametrize(
    "field",
    [
        {"top_p": 0.5},
        {"seed": 1},
        {"stop": "a"},
        {"logprobs": 1},
        {"stream": True},
        {"response_format": {"type": "json_object"}},
    ],
    ids=str,
)
def test_what_beams_cannot_have_is_refused(field: dict[str, Any]) -> None:
    request = CompletionRequest.model_validate({"prompt": "x", "use_beam_search": True, **field})
    [name] = field
    with pytest.raises(ApiError, match=f"{name} cannot be combined with use_beam_search"):
        beam_params(request, 9)
