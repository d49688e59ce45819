"""What `deterministic=True` costs: output tokens a second of the same requests without and with it.

    python benchmarks/deterministic.py [--requests 64] [--step-tokens 256]

Llama-3.1-8B's shape, random weights, greedy, 256 tokens in and 64 out. A deterministic engine runs
one program, for as many tokens as a step may have (`max_num_batched_tokens`), whatever the step
holds; so this is given to both engines. Prints one JSON line.
"""

import argparse
import random
import statistics
from typing import Any

import llama_8b
import workloads


def rate(prompts: list[list[int]], output_len: int, **options: Any) -> float:
    """Output tokens a second, median of three runs after one that compiles."""
    lengths = [output_len] * len(prompts)
    with llama_8b.make_engine(enforce_eager=True, use_tqdm_on_load=False, **options) as engine:
        return sum(lengths) / statistics.median(workloads.timed(engine, prompts, lengths, 3))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--step-tokens", type=int, default=256)
    args = parser.parse_args()
    rng = random.Random(0)
    prompts = [[rng.randrange(1000, 100_000) for _ in range(256)] for _ in range(args.requests)]
    options = {"max_num_batched_tokens": args.step_tokens, "max_num_seqs": args.requests}
    plain, exact = (
        rate(prompts, 64, deterministic=deterministic, **options) for deterministic in (False, True)
    )
    figures = {
        "benchmark": "deterministic",
        "requests": args.requests,
        "step_tokens": args.step_tokens,
        "tokens_per_s": round(plain, 1),
        "deterministic_tokens_per_s": round(exact, 1),
        "ratio": round(exact / plain, 3),
    }
    llama_8b.report(figures, None)


if __name__ == "__main__":
    main()
