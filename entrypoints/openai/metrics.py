"""Prometheus metrics, under the names that dashboards for such servers look for."""

import bisect
import collections
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from ... import EngineStats

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
TOKENS = tuple(scale * 10**power for power in range(6) for scale in (1, 2, 5))
OUTPUTS = (1, 2, 5, 10, 20, 50)

GAUGES: dict[str, tuple[str, Callable[[EngineStats], float]]] = {
    "num_requests_running": ("Sequences that run.", lambda s: s.num_running),
    "num_requests_waiting": ("Sequences that wait for room.", lambda s: s.num_waiting),
    "kv_cache_usage_perc": (
        "Share of the KV pages in use; 1 is all.",
        lambda s: s.pages_in_use / s.num_pages if s.num_pages else 0.0,
    ),
}
COUNTERS: dict[str, tuple[str, Callable[[EngineStats], float]]] = {
    "prefix_cache_queries": (
        "Prompt tokens looked up in the prefix cache.",
        lambda s: s.prefix_cache_queried_tokens,
    ),
    "prefix_cache_hits": (
        "Prompt tokens found in the prefix cache.",
        lambda s: s.prefix_cache_hit_tokens,
    ),
    "num_preemptions": ("Sequences put back to wait for pages.", lambda s: s.num_preemptions),
    "prompt_tokens": ("Prompt tokens of all requests.", lambda s: s.prompt_tokens),
    "generation_tokens": ("Tokens generated.", lambda s: s.generation_tokens),
    "programs_compiled": ("Programs compiled since the start.", lambda s: s.programs_compiled),
}
HISTOGRAMS: dict[str, tuple[str, Sequence[float]]] = {
    "request_prompt_tokens": ("Prompt tokens of a request.", TOKENS),
    "request_generation_tokens": ("Tokens generated for a request.", TOKENS),
    "request_params_n": ("Outputs asked for.", OUTPUTS),
    "request_params_max_tokens": ("Most tokens asked for.", TOKENS),
    "time_to_first_token_seconds": ("From a request's arrival to its first token.", SECONDS),
    "inter_token_latency_seconds": ("Between two tokens of a request.", SECONDS),
    "request_time_per_output_token_seconds": ("Mean time between a request's tokens.", SECONDS),
    "e2e_request_latency_seconds": ("From a request's arrival to its end.", SECONDS),
    "request_queue_time_seconds": ("From a request's arrival to its first step.", SECONDS),
    "request_prefill_time_seconds": ("From the first step to the first token.", SECONDS),
    "request_decode_time_seconds": ("From the first token to the end.", SECONDS),
    "request_inference_time_seconds": ("From the first step to the end.", SECONDS),
}


class Histogram:
    """Counts of values by size. Cheap: it is told of every token."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Counts `value`, several times if need be."""
        self.counts[bisect.bisect_left(self.bounds, value)] += times
        self.total += value * times

    def buckets(self) -> list[tuple[str, float]]:
        """How many values are up to each bound, as Prometheus has it."""
        running = 0
        found: list[tuple[str, float]] = []
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            running += count
            found.append(("+Inf" if bound == float("inf") else str(float(bound)), running))
        return found


class Metrics(Collector):
    """What the server counts, and what its engine does, which is asked only when scraped."""

    media_type = "text/plain; version=0.0.4; charset=utf-8"
    """Of `text`."""

    def __init__(
        self, prefix: str, model: str, stats: Callable[[], EngineStats], info: Mapping[str, str]
    ) -> None:
        """`info` is told in the labels of `cache_config_info`, with the number of pages."""
        self._prefix = prefix
        self._model = model
        self._stats = stats
        self._info = info
        self.histograms = {name: Histogram(bounds) for name, (_, bounds) in HISTOGRAMS.items()}
        self.finished = collections.Counter[str]({"stop": 0, "length": 0, "abort": 0, "error": 0})
        """Outputs that ended, by the reason."""
        self.rejections = 0
        """Requests that found the queue full."""
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """All metrics as they are now."""
        stats = self._stats()
        for name, (text, value) in GAUGES.items():
            yield self._labelled(GaugeMetricFamily, name, text, value(stats))
        for name, (text, value) in COUNTERS.items():
            yield self._labelled(CounterMetricFamily, name, text, value(stats))
        text = "Requests turned away since too many waited."
        yield self._labelled(CounterMetricFamily, "admission_rejections", text, self.rejections)
        yield self._outcomes()
        yield self._cache_config(stats)
        for name, (text, _) in HISTOGRAMS.items():
            histogram = self.histograms[name]
            family = HistogramMetricFamily(self._name(name), text, labels=["model_name"])
            family.add_metric([self._model], histogram.buckets(), histogram.total)
            yield family

    def describe(self) -> Iterable[Metric]:
        """Nothing ahead of time: registering asks no engine."""
        return ()

    def _name(self, name: str) -> str:
        return f"{self._prefix}:{name}"

    def _labelled(
        self,
        family: type[GaugeMetricFamily] | type[CounterMetricFamily],
        name: str,
        text: str,
        value: float,
    ) -> Metric:
        metric = family(self._name(name), text, labels=["model_name"])
        metric.add_metric([self._model], value)
        return metric

    def _outcomes(self) -> Metric:
        text = "Outputs that ended, by the reason."
        labels = ["model_name", "finished_reason"]
        metric = CounterMetricFamily(self._name("request_success"), text, labels=labels)
        for reason, count in self.finished.items():
            metric.add_metric([self._model, reason], count)
        return metric

    def _cache_config(self, stats: EngineStats) -> Metric:
        labels = {**self._info, "num_gpu_blocks": str(stats.num_pages)}
        text = "How KV pages are kept."
        names = ["model_name", *labels]
        metric = GaugeMetricFamily(self._name("cache_config_info"), text, labels=names)
        metric.add_metric([self._model, *labels.values()], 1)
        return metric
