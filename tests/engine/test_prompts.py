"""Prompts in every form that users write."""

import numpy as np
import pytest

from quire.engine.prompts import Prompt, PromptReader, check_prompt
from quire.errors import PromptError


class Letters:
    """A tokenizer of one token a letter, with 0 in front where special tokens are asked for."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [0] * add_special_tokens + [ord(letter) for letter in text]


A, B = ord("a"), ord("b")


@pytest.mark.parametrize(
    ("given", "parsed"),
    [
        ("ab", [Prompt("ab", [0, A, B])]),
        (["a", "b"], [Prompt("a", [0, A]), Prompt("b", [0, B])]),
        ([1, 2], [Prompt(None, [1, 2])]),
        (np.array([1, 2]), [Prompt(None, [1, 2])]),
        ([[1], "a"], [Prompt(None, [1]), Prompt("a", [0, A])]),
        ({"prompt": "a"}, [Prompt("a", [0, A])]),
        ({"prompt": "x", "prompt_token_ids": [4]}, [Prompt("x", [4])]),
        ([{"prompt_token_ids": [4], "cache_salt": "s"}], [Prompt(None, [4], b"s")]),
        ({"prompt": "a", "multi_modal_data": None}, [Prompt("a", [0, A])]),
        ([], []),
    ],
)
def test_forms(given: object, parsed: list[Prompt]) -> None:
    assert PromptReader(Letters()).read(given).all() == parsed  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "not a int"),
        ([1.5], "1.5 is no prompt"),
        ([[1], [2.5]], r"\[2.5\] is no prompt"),
        ({"promt": "a"}, "unknown key 'promt' in a prompt. Did you mean 'prompt'"),
        ({}, "needs one of prompt and prompt_token_ids"),
        ({"prompt": "a", "multi_modal_data": {"image": 1}}, "this model takes text alone"),
        ({"prompt": "a", "cache_salt": ""}, "cache_salt='' must be text"),
    ],
)
def test_mistakes(given: object, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        PromptReader(Letters()).read(given).all()  # pyright: ignore[reportArgumentType]


def test_text_needs_a_tokenizer() -> None:
    with pytest.raises(PromptError, match="skip_tokenizer_init=True"):
        PromptReader(None).read("a").all()


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "the prompt is empty"),
        ([1] * 8, "has 8 tokens, but max_model_len=8 allows at most 7"),
        ([1, -1], "token id -1 is out of range: allowed are 0 to 9"),
        ([10], "token id 10 is out of range"),
    ],
)
def test_what_the_model_cannot_take(ids: list[int], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        check_prompt(Prompt(None, ids), vocab_size=10, max_model_len=8)
