"""From sampled tokens to outputs: stops, text, log-probabilities. Runs while the device works."""

import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from .detokenizer import IncrementalDetokenizer
from .logprobs import LogprobReader, StepLogprobs
from .outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput
from .request import FinishReason, Request, Sequence
from .sampling_params import RequestOutputKind
from .stop import Ending, StopChecker

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

Sink = Callable[[RequestOutput], None]


@dataclasses.dataclass(eq=False, slots=True)
class _Line:
    """What a sequence has produced so far, beyond its tokens."""

    checker: StopChecker
    detokenizer: IncrementalDetokenizer | None
    logprobs: list[dict[int, Logprob]] | None
    cumulative: float = 0.0
    sent: int = 0
    """Output tokens that the user has been told of, for deltas."""
    closed: bool = False
    """Whether its end has been told."""


@dataclasses.dataclass(eq=False, slots=True)
class _Record:
    """An open request: where its outputs go and what they are made of."""

    sink: Sink
    lines: list[_Line]
    prompt_logprobs: list[dict[int, Logprob] | None] | None


class OutputProcessor:
    """Keeps the outputs of open requests."""

    def __init__(self, tokenizer: "Tokenizer | None", reader: LogprobReader) -> None:
        self._tokenizer = tokenizer
        self._reader = reader
        self._records: dict[Request, _Record] = {}
        self.prompt_tokens = 0
        """Prompt tokens of all requests opened."""
        self.generation_tokens = 0
        """Tokens accepted."""

    def open(self, request: Request, sink: Sink) -> None:
        """Starts to collect the outputs of `request`, which `emit` hands to `sink`."""
        length = len(request.prompt_token_ids)
        lines = [self._line(sequence) for sequence in request.sequences]
        record = self._records[request] = _Record(sink, lines, None)
        if request.params.prompt_logprobs is not None:
            record.prompt_logprobs = [None] * length
        self.prompt_tokens += length

    def accept_prompt(self, request: Request, start: int, logprobs: StepLogprobs) -> None:
        """Takes the log-probabilities of the prompt tokens from position `start` on."""
        known = self._records[request].prompt_logprobs
        if known is not None:
            asked = request.params.prompt_logprobs
            for offset in range(len(logprobs)):
                known[start + offset] = self._reader.entry(logprobs, offset, asked)

    def accept(
        self, sequence: Sequence, token: int, row: int, logprobs: StepLogprobs | None
    ) -> Ending | None:
        """Takes the token just appended to `sequence`; returns why it ends, or None.

        `row` is the sequence's row in `logprobs`.
        """
        request = sequence.request
        line = self._records[request].lines[sequence.index]
        self.generation_tokens += 1
        if request.first_token_time is None:
            request.first_token_time = time.monotonic()
        if line.logprobs is not None and logprobs is not None:
            line.logprobs.append(self._reader.entry(logprobs, row, request.params.logprobs))
            line.cumulative += line.logprobs[-1][token].logprob
        ending = line.checker.check(token, len(sequence.tokens))
        kept = request.params.include_stop_str_in_output
        ends_text = ending == (FinishReason.STOP, None) and not kept
        if line.detokenizer is not None and not ends_text:
            line.detokenizer.append((token,))
            if line.detokenizer.stop is not None:
                return FinishReason.STOP, line.detokenizer.stop
        return ending

    def emit(self, request: Request) -> None:
        """Hands the request's outputs, as its output kind wants them, to its sink."""
        record = self._records[request]
        finished = request.finished
        outputs = [
            self._completion(sequence, line, request.output_kind)
            for sequence, line in zip(request.sequences, record.lines, strict=True)
            if finished or not line.closed
        ]
        now = time.monotonic() if finished else None
        if finished:
            del self._records[request]
        record.sink(
            RequestOutput(
                request_id=request.id,
                prompt=request.prompt,
                prompt_token_ids=request.prompt_token_ids,
                prompt_logprobs=record.prompt_logprobs,
                outputs=outputs,
                finished=finished,
                metrics=RequestMetrics(
                    request.arrival_time, request.scheduled_time, request.first_token_time, now
                ),
                lora_request=request.adapter and request.adapter.request,
                num_cached_tokens=request.sequences[0].cached,
            )
        )

    def _line(self, sequence: Sequence) -> _Line:
        request, params = sequence.request, sequence.request.params
        detokenizer = None
        if self._tokenizer is not None and params.detokenize:
            detokenizer = IncrementalDetokenizer(self._tokenizer, request.prompt_token_ids, params)
        return _Line(
            StopChecker(params, request.eos_ids, sequence.max_len, sequence.prompt_len),
            detokenizer,
            [] if params.logprobs is not None else None,
        )

    def _completion(
        self, sequence: Sequence, line: _Line, kind: RequestOutputKind
    ) -> CompletionOutput:
        if sequence.finished and not line.closed:
            line.closed = True
            if line.detokenizer is not None:
                line.detokenizer.finish()
        delta = kind == RequestOutputKind.DELTA
        first = line.sent if delta else 0
        line.sent = sequence.output_len
        text = ""
        if line.detokenizer is not None:
            text = line.detokenizer.take_delta() if delta else line.detokenizer.text
        return CompletionOutput(
            index=sequence.index,
            text=text,
            token_ids=sequence.tokens[sequence.prompt_len + first :],
            cumulative_logprob=line.cumulative if line.logprobs is not None else None,
            logprobs=line.logprobs[first:] if line.logprobs is not None else None,
            finish_reason=sequence.finish_reason and sequence.finish_reason.value,
            stop_reason=sequence.stop_reason,
            lora_request=sequence.request.adapter and sequence.request.adapter.request,
        )
