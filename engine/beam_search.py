"""Beam search by the rules of `GenerationMixin._beam_search` in `transformers`."""

import dataclasses
import heapq
import math
from collections.abc import Generator, Iterator, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import EngineClosedError, OptionError
from .detokenizer import IncrementalDetokenizer
from .outputs import BeamSearchOutput, BeamSearchSequence
from .prompts import Prompt, check_prompt
from .reading import Reading
from .request import FinishReason
from .sampling_params import BeamSearchParams, SamplingParams

if TYPE_CHECKING:
    from .assembly import Assembly
    from .engine import Engine
    from .outputs import RequestOutput
    from .tokenizer import Tokenizer

_LARGEST_EXPONENT = 700.0
"""exp of more leaves the range of a double."""

Logprobs = Sequence[tuple[int, float]]
"""Tokens with their log-probabilities."""


@dataclasses.dataclass(frozen=True, slots=True)
class Beam:
    """An output, whole or in the making."""

    token_ids: tuple[int, ...] = ()
    logprob: float = 0.0
    """Sum of the log-probabilities of its tokens."""
    ended: bool = False
    """Its last token is an end-of-sequence token."""


class BeamSearch:
    """The search for one prompt: told log-probabilities, it says which beams to look at next."""

    def __init__(self, params: BeamSearchParams, max_tokens: int, eos: frozenset[int]) -> None:
        """A search for outputs of up to `max_tokens`, at least 1, that the tokens of `eos` end."""
        self._params = params
        self._max_tokens = max_tokens
        self._eos = eos
        self.running = [Beam()]
        """Beams to go on from, the likeliest first; at most `beam_width`."""
        self.finished: list[Beam] = []
        """The best so far, by `score`: at most `beam_width`."""
        self.done = False
        """Whether `finished` is the result. It is short only where there are no more outputs."""

    def advance(self, logprobs: Sequence[Logprobs]) -> None:
        """Makes every running beam one token longer.

        Args:
            logprobs: for each running beam at least its `beam_width + len(eos)` likeliest next
                tokens, or all of a smaller vocabulary. Among equals the one given first goes first.
        """
        width = self._params.beam_width
        longer = self._continuations(logprobs)
        candidates = sorted(longer, key=lambda beam: beam.logprob, reverse=True)
        last = len(candidates[0].token_ids) == self._max_tokens
        # One that ends below the best beam_width neither finishes nor goes on.
        ends = [beam for beam in candidates[:width] if beam.ended or last]
        self.finished = sorted([*self.finished, *ends], key=self.score, reverse=True)[:width]
        self.running = [] if last else [beam for beam in candidates if not beam.ended][:width]
        self.done = not self.running or self._is_settled()

    def score(self, beam: Beam) -> float:
        """What finished beams are ranked by; higher is better."""
        return self._score_at(beam, len(beam.token_ids))

    def _score_at(self, beam: Beam, length: int) -> float:
        return beam.logprob / length**self._params.length_penalty

    def _continuations(self, logprobs: Sequence[Logprobs]) -> Iterator[Beam]:
        for beam, tokens in zip(self.running, logprobs, strict=True):
            for token, logprob in tokens:
                ended = token in self._eos
                yield Beam((*beam.token_ids, token), beam.logprob + logprob, ended)

    def _is_settled(self) -> bool:
        """Whether what still runs is given up for what has finished."""
        if len(self.finished) < self._params.beam_width:
            return False
        if self._params.early_stopping is True:
            return True
        best = self.running[0]
        length = len(best.token_ids)
        if self._params.early_stopping == "never" and self._params.length_penalty > 0:
            length = self._max_tokens
        return self._score_at(best, length) <= self.score(self.finished[-1])


def run(
    engine: "Engine", prompts: Sequence[Prompt], params: BeamSearchParams, *, use_tqdm: bool
) -> list[BeamSearchOutput]:
    """Searches for all prompts together: a step is one batch of requests for one token each.

    Returns an output a prompt, in their order. Raises PromptError or OptionError before anything is
    queued.
    """
    search = steps(engine, prompts, _checked(params))
    outputs = None
    with _progress(params.max_tokens, shown=use_tqdm) as bar:
        while True:
            try:
                extended, asked = search.send(outputs)
            except StopIteration as ended:
                return ended.value
            outputs = engine._generate(Reading.of(extended), asked, use_tqdm=False)
            bar.update()


Steps = Generator[
    tuple[list[Prompt], SamplingParams], "Sequence[RequestOutput] | None", list[BeamSearchOutput]
]


def steps(engine: "Engine", prompts: Sequence[Prompt], params: BeamSearchParams) -> Steps:
    """The search as a generator: yields what to generate next, and is sent the outputs."""
    assembly, params = engine._running, _checked(params)
    searches = [_new_search(assembly, prompt, params) for prompt in prompts]
    step = _Step(assembly, params)
    while live := [pair for pair in zip(prompts, searches, strict=True) if not pair[1].done]:
        outputs = yield step.extended(live), step.asked
        step.advance(live, outputs or [])
    return [
        _output(str(next(engine._serial)), prompt, search, params, assembly.tokenizer)
        for prompt, search in zip(prompts, searches, strict=True)
    ]


def _checked(params: object) -> BeamSearchParams:
    if not isinstance(params, BeamSearchParams):
        raise OptionError(f"{params!r} must be BeamSearchParams for a beam search.")
    return params


_Live = Sequence[tuple[Prompt, BeamSearch]]
"""Prompts with searches that are not done."""


class _Step:
    """One step of many searches."""

    def __init__(self, assembly: "Assembly", params: BeamSearchParams) -> None:
        self._count = params.beam_width + len(_eos(assembly, params))
        self._temperature = params.temperature or 1.0
        limit = assembly.options.max_logprobs
        few = self._temperature == 1 and (limit == -1 or self._count <= limit)
        vocab_size = assembly.spec.config.vocab_size
        self.asked = SamplingParams(
            temperature=0.0,
            max_tokens=1,
            ignore_eos=True,
            detokenize=False,
            logprobs=self._count if few and self._count < vocab_size else -1,
        )
        """What is asked for each running beam."""

    def extended(self, live: _Live) -> list[Prompt]:
        """Prompts with the tokens of each running beam behind them."""
        return [
            dataclasses.replace(prompt, text=None, token_ids=[*prompt.token_ids, *beam.token_ids])
            for prompt, search in live
            for beam in search.running
        ]

    def advance(self, live: _Live, outputs: "Sequence[RequestOutput]") -> None:
        """Takes what `extended` gave."""
        given = iter(outputs)
        for _, search in live:
            search.advance([self._likeliest(next(given)) for _ in search.running])

    def _likeliest(self, output: "RequestOutput") -> Logprobs:
        [logprobs] = output.outputs[0].logprobs or [None]
        if logprobs is None:
            raise EngineClosedError("the engine was closed in the middle of a beam search.")
        pairs = [(token, entry.logprob) for token, entry in logprobs.items()]
        if self._temperature != 1:
            pairs = rescaled(pairs, self._temperature)
        return heapq.nlargest(self._count, pairs, key=itemgetter(1))


def rescaled(logprobs: Logprobs, temperature: float) -> Logprobs:
    """Log-probabilities of the whole vocabulary as they are with logits over `temperature`."""
    values = np.array([logprob for _, logprob in logprobs]) / temperature
    values -= np.logaddexp.reduce(values)
    return [(token, value) for (token, _), value in zip(logprobs, values.tolist(), strict=True)]


def _new_search(assembly: "Assembly", prompt: Prompt, params: BeamSearchParams) -> BeamSearch:
    config = assembly.spec.config
    check_prompt(prompt, vocab_size=config.vocab_size, max_model_len=config.max_model_len)
    max_tokens = min(params.max_tokens, config.max_model_len - len(prompt.token_ids))
    if abs(params.length_penalty) * math.log(max_tokens) > _LARGEST_EXPONENT:
        raise OptionError(
            f"length_penalty={params.length_penalty}: {max_tokens} tokens to that power is beyond "
            "what a float can be. Pass one nearer to 0."
        )
    return BeamSearch(params, max_tokens, _eos(assembly, params))


def _eos(assembly: "Assembly", params: BeamSearchParams) -> frozenset[int]:
    return frozenset() if params.ignore_eos else assembly.eos_token_ids


def _progress(steps: int, *, shown: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=steps, disable=not shown, desc="Beam search", unit="step", dynamic_ncols=True)


def _output(
    request_id: str,
    prompt: Prompt,
    search: BeamSearch,
    params: BeamSearchParams,
    tokenizer: "Tokenizer | None",
) -> BeamSearchOutput:
    adapter = prompt.adapter and prompt.adapter.request
    sequences = [
        BeamSearchSequence(
            index=index,
            lora_request=adapter,
            text=_text(beam, prompt, params, tokenizer),
            token_ids=list(beam.token_ids),
            cumulative_logprob=beam.logprob,
            finish_reason=(FinishReason.STOP if beam.ended else FinishReason.LENGTH).value,
            score=search.score(beam),
        )
        for index, beam in enumerate(search.finished)
    ]
    return BeamSearchOutput(
        request_id=request_id,
        prompt=prompt.text,
        prompt_token_ids=prompt.token_ids,
        prompt_logprobs=None,
        outputs=sequences,
        finished=True,
        lora_request=adapter,
    )


def _text(
    beam: Beam, prompt: Prompt, params: BeamSearchParams, tokenizer: "Tokenizer | None"
) -> str:
    if tokenizer is None:
        return ""
    cut = beam.ended and not params.include_stop_str_in_output
    shown = SamplingParams(skip_special_tokens=params.skip_special_tokens)
    detokenizer = IncrementalDetokenizer(tokenizer, prompt.token_ids, shown)
    detokenizer.append(beam.token_ids[:-1] if cut else beam.token_ids)
    detokenizer.finish()
    return detokenizer.text
