"""Vocabulary-wide rows of a sequence: which tokens it has had, and which it may not have next."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .request import Sequence


def counts_row(sequence: "Sequence", vocab_size: int) -> np.ndarray:
    """uint16 [V]: twice the times a token was output, plus 1 where the prompt has it.

    More than 32,767 times count as that many.
    """
    start = sequence.prompt_len
    output = np.bincount(sequence.tokens[start:], minlength=vocab_size)
    row = 2 * np.minimum(output, np.iinfo(np.uint16).max // 2).astype(np.uint16)
    row[np.unique(sequence.tokens[:start])] += 1
    return row


def bias_row(sequence: "Sequence", position: int, vocab_size: int) -> np.ndarray:
    """float32 [V] to add to the logits of the token at `position`; -inf forbids.

    With bad words of several tokens, all tokens before `position` must be known.
    """
    params = sequence.request.params
    row = np.zeros(vocab_size, np.float32)
    if params.allowed_token_ids is not None:
        row[:] = -np.inf
        row[params.allowed_token_ids] = 0.0
    for token, bias in (params.logit_bias or {}).items():
        row[int(token)] += bias
    if position - sequence.prompt_len < params.min_tokens:
        row[list(sequence.request.stop_ids)] = -np.inf
    for word in sequence.request.bad_words:
        if _ends_with(sequence.tokens, word[:-1], sequence.prompt_len):
            row[word[-1]] = -np.inf
    return row


def changes_now(sequence: "Sequence", position: int) -> bool:
    """Whether the bias for the token at `position` differs from that of the token before."""
    lifted = position - sequence.prompt_len == sequence.request.params.min_tokens
    return sequence.waits_for_token or (lifted and position > sequence.prompt_len)


def _ends_with(tokens: list[int], prefix: list[int], start: int) -> bool:
    """Whether `tokens[start:]` ends with `prefix`; the prompt does not count."""
    return not prefix or (len(tokens) - start >= len(prefix) and tokens[-len(prefix) :] == prefix)
