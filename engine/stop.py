"""When a sequence ends: stop strings, stop tokens, end of sequence, length. Plain Python."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from .request import FinishReason

if TYPE_CHECKING:
    from .sampling_params import SamplingParams

Ending = tuple[FinishReason, int | str | None]
"""Why a sequence ended, and the stop string or stop token that did it."""


class StopChecker:
    """Decides after each token of one sequence whether the sequence ends there.

    Lengths count the tokens of the sequence, its prompt included; with `prompt_len` 0, of its
    output. An end-of-sequence token ends it before a stop token, and both before the length.
    """

    def __init__(
        self,
        params: "SamplingParams",
        eos_token_ids: Iterable[int],
        max_len: int,
        prompt_len: int = 0,
    ) -> None:
        self._endings: dict[int, Ending] = {
            token: (FinishReason.STOP, token) for token in params.stop_token_ids or ()
        }
        if not params.ignore_eos:
            self._endings |= {token: (FinishReason.STOP, None) for token in eos_token_ids}
        self._min_len = prompt_len + params.min_tokens
        self._max_len = max_len

    def check(self, token: int, length: int) -> Ending | None:
        """The ending, if any, of a sequence that has `length` tokens, the last of them `token`.

        Up to `min_tokens` of output only the length ends it.
        """
        ending = self._endings.get(token)
        if ending is not None and length > self._min_len:
            return ending
        return (FinishReason.LENGTH, None) if length >= self._max_len else None


def find_stop(text: str, stops: Sequence[str], seen: int = 0) -> tuple[int, str] | None:
    """Where `text` has the first of the stop strings to be complete, and which one.

    Only those that end after the first `seen` characters count. The first complete one is the same
    whether the text comes at once or in pieces; among those that end together it is the longest.
    """
    found = []
    for stop in stops:
        start = text.find(stop, max(seen - len(stop) + 1, 0))
        if start >= 0:
            found.append((start + len(stop), start, stop))
    return min(found)[1:] if found else None


def held_back(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of `text` may be the beginning of a stop string."""
    return max((_overlap(text, stop) for stop in stops), default=0)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with and is longer than."""
    start = text.find(stop[0], max(len(text) - len(stop) + 1, 0))
    while start >= 0 and not stop.startswith(text[start:]):
        start = text.find(stop[0], start + 1)
    return len(text) - start if start >= 0 else 0
