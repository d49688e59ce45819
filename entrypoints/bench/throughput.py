"""`quire bench throughput`: how much gets done when many prompts come at once."""

import argparse
import statistics
from typing import Any

from ... import SamplingParams
from ..arguments import sampling_params
from .batch import Batch, open_engine, vocab_size
from .report import machine, record, rounded, say
from .workload import SAMPLING, lengths, random_ids, read_dataset, settle


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The record of `args.runs` runs. Mistakes that need no model are told before it loads."""
    settle(args)
    sampling = sampling_params(args, SAMPLING)
    SamplingParams(**sampling)
    asks = args.dataset and read_dataset(args.dataset, args.output_len, args.num_prompts)
    with open_engine(args) as engine:
        asks = asks or random_ids(args.num_prompts, lengths(args), vocab_size(args), args.seed)
        batch = Batch(engine, asks, sampling)
        batch.warm_up(args.warmup_runs)
        seconds = []
        for number in range(args.runs):
            seconds.append(batch.seconds())
            say(f"run {number + 1} of {args.runs}: {seconds[-1]:.3f} s")
    return record(args, machine(), _figures(batch, len(asks), seconds))


def _figures(batch: Batch, requests: int, seconds: list[float]) -> dict[str, Any]:
    median = statistics.median(seconds)
    return {
        "requests": requests,
        "prompt_tokens": batch.prompt_tokens,
        "output_tokens": batch.output_tokens,
        "runs_s": [rounded(s) for s in seconds],
        "median_s": rounded(median),
        "requests_per_s": rounded(requests / median),
        "output_tokens_per_s": rounded(batch.output_tokens / median),
        "total_tokens_per_s": rounded((batch.prompt_tokens + batch.output_tokens) / median),
    }
