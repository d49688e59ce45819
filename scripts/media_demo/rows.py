"""Dialogues as rows of tokens. Imports no jax."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from .dialogue import Dialogue

FLAG = 1 << 12
"""A token of an answer has this added to it."""


class Rows(NamedTuple):
    """Dialogues that all have the same number of media."""

    tokens: np.ndarray
    """uint16 [N, L], flagged, each placeholder as many times as its medium has features."""
    media: np.ndarray
    """int32 [N, media]: their numbers."""


def encode(tokenizer: Tokenizer, dialogues: Sequence[Dialogue[Any]]) -> Iterator[np.ndarray]:
    """Each dialogue as tokens, flagged where the model is meant to write them."""
    texts = [text for dialogue in dialogues for text, _ in dialogue.segments]
    encoded = iter(tokenizer.encode_batch_fast(texts, add_special_tokens=False))
    for dialogue in dialogues:
        pieces = [
            np.array(next(encoded).ids, np.uint16) + np.uint16(FLAG * written)
            for _, written in dialogue.segments
        ]
        yield np.concatenate(pieces)


def repeated(row: np.ndarray, placeholders: Sequence[int], counts: Sequence[int]) -> np.ndarray:
    """The row with the n-th of its placeholders, which are any of these tokens, counts[n] times."""
    times = np.ones(len(row), int)
    times[np.isin(row, placeholders)] = counts
    return np.repeat(row, times)


def padded(
    rows: Sequence[np.ndarray], media: Sequence[Sequence[int]], length: int, pad: int
) -> Rows:
    """Rows and the numbers of their media; one longer than `length` is left out."""
    fitting = [i for i, row in enumerate(rows) if len(row) <= length]
    tokens = np.full((len(fitting), length), pad, np.uint16)
    for target, i in zip(tokens, fitting, strict=True):
        target[: len(rows[i])] = rows[i]
    numbers = np.array([media[i] for i in fitting], np.int32)
    return Rows(tokens, numbers.reshape(len(fitting), -1))


def joined(shards: Sequence[Rows]) -> Rows:
    """All rows of the shards."""
    return Rows(*map(np.concatenate, zip(*shards, strict=True)))
