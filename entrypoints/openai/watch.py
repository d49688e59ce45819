"""Times one request for the metrics."""

import asyncio
import contextlib
import time
from collections.abc import Iterator

from ... import CompletionOutput, EngineClosedError, RequestOutput, SamplingParams
from .metrics import Metrics


class Watch:
    """A stopwatch for a request of `n` outputs, started when it is made."""

    def __init__(self, metrics: Metrics, n: int) -> None:
        self._metrics = metrics
        self._observe = metrics.histograms
        self._n = n
        self._start = time.monotonic()
        self._first: float | None = None
        self._tokens = 0
        self._last: dict[int, float] = {}  # by output, when it had its last tokens
        self._reasons: dict[int, str] = {}  # by output that ended, why

    def asked(self, params: SamplingParams) -> None:
        """Takes down what was asked for."""
        self._observe["request_params_n"].observe(params.n)
        if params.max_tokens is not None:
            self._observe["request_params_max_tokens"].observe(params.max_tokens)

    @contextlib.contextmanager
    def outcome(self) -> Iterator[None]:
        """Counts outputs by how they ended; a request refused by the engine is none of them."""
        left = "error"
        try:
            yield
        except (GeneratorExit, asyncio.CancelledError):
            left = "abort"
            raise
        except EngineClosedError:
            raise
        except Exception:
            left = None
            raise
        finally:
            self._metrics.finished.update(self._reasons.values())
            if left is not None:
                self._metrics.finished[left] += self._n - len(self._reasons)

    def see(self, output: RequestOutput) -> None:
        """Takes the next part of a stream, or the one output of a request that has no more."""
        now = time.monotonic()
        whole = output.finished and self._first is None
        if whole:
            self._whole(output, now)
        for one in output.outputs:
            if one.token_ids:
                self._more(one, now, len(one.token_ids) - whole)
            if one.finish_reason is not None:
                self._reasons[one.index] = one.finish_reason
        if output.finished:
            self._finished(output, now)

    def _whole(self, output: RequestOutput, now: float) -> None:
        """Takes the first token's time from the engine, as far as it tells it."""
        first = output.metrics.first_token_time if output.metrics else None
        self._begin(now if first is None else first)
        self._last = dict.fromkeys(range(self._n), self._first or now)

    def _begin(self, first: float) -> None:
        self._first = first
        self._observe["time_to_first_token_seconds"].observe(first - self._start)

    def _more(self, one: CompletionOutput, now: float, gaps: int) -> None:
        """Counts new tokens. Several share the time since the last ones: this stream lagged."""
        if self._first is None:
            self._begin(now)
        last = self._last.get(one.index)
        if last is not None and gaps:
            self._observe["inter_token_latency_seconds"].observe((now - last) / gaps, gaps)
        self._last[one.index] = now
        self._tokens += len(one.token_ids)

    def _finished(self, output: RequestOutput, now: float) -> None:
        observe = self._observe
        observe["e2e_request_latency_seconds"].observe(now - self._start)
        observe["request_prompt_tokens"].observe(len(output.prompt_token_ids))
        observe["request_generation_tokens"].observe(self._tokens)
        self._parts(output)
        steps = self._tokens / self._n - 1
        if steps > 0 and self._first is not None:
            each = (now - self._first) / steps
            observe["request_time_per_output_token_seconds"].observe(each)

    def _parts(self, output: RequestOutput) -> None:
        """What the engine spent the time on, where it tells: a beam search is many requests."""
        if output.metrics is None:
            return
        arrived, scheduled = output.metrics.arrival_time, output.metrics.scheduled_time
        first, end = output.metrics.first_token_time, output.metrics.finish_time
        if scheduled is None or first is None or end is None:
            return
        self._observe["request_queue_time_seconds"].observe(scheduled - arrived)
        self._observe["request_prefill_time_seconds"].observe(first - scheduled)
        self._observe["request_decode_time_seconds"].observe(end - first)
        self._observe["request_inference_time_seconds"].observe(end - scheduled)
