"""Milliseconds a decode step takes for one request, over the length of what it attends to.

    python benchmarks/contexts.py [--tokens 1024 8192 32768 65536 131072] [--steps 64]

Llama-3.1-8B's shape, random weights, greedy. A prompt stays in the prefix cache after a first call,
so that the ones that count are of the same prompt with one and with many output tokens.
Prints one JSON line a length.
"""

import argparse
import random
import statistics
import time
from typing import Any

import llama_8b

from quire import Engine, SamplingParams


def seconds(engine: Engine, prompt: list[int], tokens: int, runs: int) -> float:
    """Median of so many calls."""
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        engine.generate([prompt], params, use_tqdm=False)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    lengths = [2**10, 2**13, 2**15, 2**16, 2**17]
    parser.add_argument("--tokens", type=int, nargs="+", default=lengths, help="last contexts")
    parser.add_argument("--steps", type=int, default=64)
    args = parser.parse_args()
    options: dict[str, Any] = {"max_model_len": max(args.tokens), "max_num_seqs": 8}
    rng = random.Random(0)
    with llama_8b.make_engine(enforce_eager=True, use_tqdm_on_load=False, **options) as engine:
        for length in args.tokens:
            prompt = [rng.randrange(1000, 100_000) for _ in range(length - args.steps - 1)]
            seconds(engine, prompt, args.steps + 1, runs=1)  # compiles
            engine.reset_prefix_cache()
            prefill = seconds(engine, prompt, 1, runs=1)
            many, one = (seconds(engine, prompt, tokens, runs=3) for tokens in (args.steps + 1, 1))
            figures = {
                "benchmark": "contexts",
                "tokens": length,
                "prefill_s": round(prefill, 3),
                "ms_per_step": round((many - one) / args.steps * 1e3, 3),
            }
            llama_8b.report(figures, None)


if __name__ == "__main__":
    main()
