import math
from typing import Any

from tests.entrypoints.openai.demo_api import demo_engine

from quire import Logprob
from quire.entrypoints.openai.logprobs import (
    TokenNames,
    chat_logprobs,
    completion_logprobs,
    prompt_logprobs,
)

NAMES = TokenNames(None, as_ids=False)
FIRST = {7: Logprob(-2.0, 3, "a"), 8: Logprob(-0.5, 1, "bc"), 9: Logprob(-1.0, 2, "d")}
SECOND = {8: Logprob(-math.inf, 5, "bc"), 9: Logprob(-1.0, 1, "d"), 7: Logprob(-3.0, 2, "a")}


def test_completions() -> None:
    assert completion_logprobs([7, 8], [FIRST, SECOND], NAMES, offset=4) == {
        "text_offset": [4, 5],
        "tokens": ["a", "bc"],
        "token_logprobs": [-2.0, -9999.0],
        "top_logprobs": [
            {"a": -2.0, "bc": -0.5, "d": -1.0},
            {"bc": -9999.0, "d": -1.0, "a": -3.0},
        ],
    }


def test_the_first_token_of_a_prompt_has_none() -> None:
    tokenizer = demo_engine().get_tokenizer()
    [token] = tokenizer.encode("a")
    told = completion_logprobs([token, 8], [None, SECOND], TokenNames(tokenizer, as_ids=False))
    assert (told["tokens"], told["text_offset"]) == (["a", "bc"], [0, 1])
    assert (told["token_logprobs"][0], told["top_logprobs"][0]) == (None, None)


def test_two_tokens_of_one_text_have_the_likelier_ones() -> None:
    entry = {7: Logprob(-2.0, 2, "a"), 8: Logprob(-0.5, 1, "a")}
    assert completion_logprobs([7], [entry], NAMES)["top_logprobs"] == [{"a": -0.5}]


def test_chats() -> None:
    [first, second] = chat_logprobs([7, 8], [FIRST, SECOND], 2, NAMES)["content"]
    top: list[dict[str, Any]] = first.pop("top_logprobs")
    assert first == {"token": "a", "logprob": -2.0, "bytes": [97]}
    assert [(one["token"], one["logprob"]) for one in top] == [("bc", -0.5), ("d", -1.0)]
    assert second["logprob"] == -9999.0
    assert chat_logprobs([7], [FIRST], 0, NAMES)["content"][0]["top_logprobs"] == []
    assert len(chat_logprobs([7], [FIRST], -1, NAMES)["content"][0]["top_logprobs"]) == 3


def test_names_by_ids() -> None:
    names = TokenNames(None, as_ids=True)
    assert completion_logprobs([7], [FIRST], names)["tokens"] == ["token_id:7"]
    [told] = chat_logprobs([7], [FIRST], 1, names)["content"]
    assert (told["token"], told["top_logprobs"][0]["token"]) == ("token_id:7", "token_id:8")
    nameless = {7: Logprob(-1.0)}
    assert chat_logprobs([7], [nameless], 0, NAMES)["content"][0]["bytes"] is None


def test_bytes_of_parts_of_characters_are_the_true_ones() -> None:
    tokenizer = demo_engine().get_tokenizer()
    tokens = tokenizer.encode("\N{SNOWMAN}")
    assert len(tokens) > 1
    entries = [{token: Logprob(-1.0, 1, "\ufffd")} for token in tokens]
    told = chat_logprobs(tokens, entries, 0, TokenNames(tokenizer, as_ids=False))["content"]
    whole = [byte for one in told for byte in one["bytes"]]
    assert bytes(whole).decode() == "\N{SNOWMAN}"


def test_prompts() -> None:
    assert prompt_logprobs([None, {7: Logprob(-math.inf, 3, "a")}]) == [
        None,
        {"7": {"logprob": -9999.0, "rank": 3, "decoded_token": "a"}},
    ]
