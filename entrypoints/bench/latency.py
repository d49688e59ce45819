"""`quire bench latency`: how long one batch takes, and each of its tokens."""

import argparse
import dataclasses
import statistics
from typing import Any

from ... import SamplingParams
from ..arguments import sampling_params
from .batch import Batch, open_engine, vocab_size
from .report import machine, percentile, record, rounded, say
from .workload import SAMPLING, Lengths, random_ids


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The record of `args.runs` runs, each followed by one of a single output token."""
    sampling = sampling_params(args, SAMPLING)
    SamplingParams(**sampling)
    with open_engine(args) as engine:
        shape = Lengths(args.input_len, args.output_len)
        asks = random_ids(args.batch_size, shape, vocab_size(args), args.seed)
        whole = Batch(engine, asks, sampling)
        first = Batch(engine, [dataclasses.replace(ask, output_len=1) for ask in asks], sampling)
        for batch in (whole, first):
            batch.warm_up(args.warmup_runs)
        seconds, first_seconds = [], []
        for number in range(args.runs):
            seconds.append(whole.seconds())
            first_seconds.append(first.seconds())
            say(f"run {number + 1} of {args.runs}: {seconds[-1]:.3f} s")
    return record(args, machine(), _figures(seconds, first_seconds, args.output_len))


def _figures(seconds: list[float], first_seconds: list[float], output_len: int) -> dict[str, Any]:
    median, first = statistics.median(seconds), statistics.median(first_seconds)
    each = (median - first) / (output_len - 1) * 1e3 if output_len > 1 else None
    return {
        "runs_s": [rounded(s) for s in seconds],
        "median_s": rounded(median),
        "p90_s": rounded(percentile(seconds, 90)),
        "p99_s": rounded(percentile(seconds, 99)),
        "first_token_s": rounded(first),
        "ms_per_output_token": each and rounded(each),
    }
