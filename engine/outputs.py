"""What the engine gives back: plain data, no behaviour."""

import dataclasses
import reprlib
from collections.abc import Sequence
from typing import NamedTuple, cast

from ..lora.request import LoRARequest


class Logprob(NamedTuple):
    """A token's place in the distribution it was taken from, before temperature and penalties."""

    logprob: float
    """Natural logarithm of its probability."""
    rank: int | None = None
    """1 for the most likely token of the vocabulary."""
    decoded_token: str | None = None
    """Its text; None without a tokenizer."""


Logprobs = list[dict[int, Logprob]]
"""For each token, from token id to `Logprob`: the token itself and those asked for."""
PromptLogprobs = list[dict[int, Logprob] | None]
"""The same for a prompt, whose first token has None."""


@dataclasses.dataclass(repr=False, slots=True)
class CompletionOutput:
    """One of the `n` outputs of a request."""

    index: int
    """Which of the outputs it is, from 0."""
    text: str
    """Without the prompt. Empty without a tokenizer."""
    token_ids: list[int]
    cumulative_logprob: float | None = None
    """Sum of the tokens' log-probabilities; None if they were not asked for."""
    logprobs: Logprobs | None = None
    """None if they were not asked for."""
    finish_reason: str | None = None
    """"stop", "length" or "abort"; None while it runs."""
    stop_reason: int | str | None = None
    """The stop string or stop token id that ended it; None for anything else."""
    lora_request: LoRARequest | None = None
    """The adapter it was made with."""

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(index={self.index}, text={_cut(self.text)}, "
            f"{len(self.token_ids)} tokens, finish_reason={self.finish_reason!r})"
        )


@dataclasses.dataclass(slots=True)
class RequestMetrics:
    """When things happened to a request: seconds of `time.monotonic()`."""

    arrival_time: float
    scheduled_time: float | None = None
    """When it left the queue for the first time; None while it waits."""
    first_token_time: float | None = None
    """None until there is a token."""
    finish_time: float | None = None
    """None until it is finished."""

    @property
    def time_to_first_token(self) -> float | None:
        """Seconds from arrival to the first token."""
        first = self.first_token_time
        return None if first is None else first - self.arrival_time

    @property
    def latency(self) -> float | None:
        """Seconds from arrival to the end."""
        return None if self.finish_time is None else self.finish_time - self.arrival_time


@dataclasses.dataclass(repr=False, slots=True)
class RequestOutput:
    """What a prompt gave, or in a stream what it gave so far."""

    request_id: str
    prompt: str | None
    """None where the prompt was token ids."""
    prompt_token_ids: list[int]
    prompt_logprobs: PromptLogprobs | None
    """None if they were not asked for."""
    outputs: Sequence[CompletionOutput]
    finished: bool
    """Whether all outputs are."""
    metrics: RequestMetrics | None = None
    lora_request: LoRARequest | None = None
    num_cached_tokens: int = 0
    """Prompt tokens found in the prefix cache."""

    def followed_by(self, later: "RequestOutput") -> "RequestOutput":
        """Two outputs of kind DELTA as one: `later`, with what is new here before its own."""
        news = {one.index: one for one in later.outputs}
        mine = [_joined(one, news.pop(one.index, None)) for one in self.outputs]
        later.outputs = [*mine, *news.values()]
        return later

    def __repr__(self) -> str:
        prompt = (
            f"{len(self.prompt_token_ids)} tokens" if self.prompt is None else _cut(self.prompt)
        )
        return (
            f"{type(self).__name__}(request_id={self.request_id!r}, prompt={prompt}, "
            f"outputs={list(self.outputs)!r}, finished={self.finished})"
        )


def _joined(earlier: CompletionOutput, later: CompletionOutput | None) -> CompletionOutput:
    if later is None:
        return earlier
    later.text = earlier.text + later.text
    later.token_ids = earlier.token_ids + later.token_ids
    if earlier.logprobs is not None and later.logprobs is not None:
        later.logprobs = earlier.logprobs + later.logprobs
    return later


@dataclasses.dataclass(repr=False, slots=True)
class BeamSearchSequence(CompletionOutput):
    """One beam: an output with its `cumulative_logprob` and the score beams are ranked by."""

    score: float = 0.0
    """`cumulative_logprob` over the number of tokens to the power of `length_penalty`."""


@dataclasses.dataclass(repr=False, slots=True)
class BeamSearchOutput(RequestOutput):
    """What a beam search gave for a prompt, best first; each output is a `BeamSearchSequence`."""

    @property
    def sequences(self) -> Sequence[BeamSearchSequence]:
        """The same as `outputs`."""
        return cast("Sequence[BeamSearchSequence]", self.outputs)


_SHORT = reprlib.Repr()
_SHORT.maxstring = 60


def _cut(text: str) -> str:
    return _SHORT.repr(text)
