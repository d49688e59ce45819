"""Counts and bias rows."""

from typing import Any

import numpy as np

from quire.engine.request import Request, Sequence
from quire.engine.sampling_params import SamplingParams
from quire.engine.token_masks import bias_row, changes_now, counts_row

VOCAB = 10


def make(
    tokens: list[int], prompt_len: int, bad_words: list[list[int]] | None = None, **params: Any
) -> Sequence:
    request = Request("r", None, tokens[:prompt_len], SamplingParams(**params), 0)
    request.bad_words = bad_words or []
    request.stop_ids = frozenset({9})
    waits = any(len(word) > 1 for word in request.bad_words)
    return Sequence(request, 0, tokens, prompt_len, 100, waits_for_token=waits)


def forbidden(row: np.ndarray) -> list[int]:
    return np.flatnonzero(np.isneginf(row)).tolist()


def test_counts_tell_prompt_from_output() -> None:
    row = counts_row(make([1, 1, 2, 2, 3, 3], prompt_len=3), VOCAB)
    assert row.tolist() == [0, 1, 1 + 2, 4, 0, 0, 0, 0, 0, 0]


def test_bias_adds_up() -> None:
    row = bias_row(make([1], 1, allowed_token_ids=[2, 3], logit_bias={3: 1.5, 4: 2}), 1, VOCAB)
    assert row[2:4].tolist() == [0, 1.5]
    assert forbidden(row) == [0, 1, 4, 5, 6, 7, 8, 9]


def test_stops_are_forbidden_until_min_tokens() -> None:
    sequence = make([1, 5, 5], 1, min_tokens=3)
    assert forbidden(bias_row(sequence, 3, VOCAB)) == [9]
    assert forbidden(bias_row(sequence, 4, VOCAB)) == []
    assert [changes_now(sequence, position) for position in (2, 3, 4, 5)] == [
        False,
        False,
        True,
        False,
    ]


def test_bad_words_look_at_the_output_only() -> None:
    words = [[4], [5, 6], [5, 5, 7]]
    assert forbidden(bias_row(make([5, 5], 2, words), 2, VOCAB)) == [4]
    assert forbidden(bias_row(make([1, 5], 1, words), 2, VOCAB)) == [4, 6]
    assert forbidden(bias_row(make([1, 5, 5], 1, words), 3, VOCAB)) == [4, 6, 7]
    assert changes_now(make([1, 5], 1, words), 2)
