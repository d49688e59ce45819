"""Tokens per second of many requests at once over those of one at a time, with the demo model.

    python benchmarks/batching.py [--requests 64] [--tokens 64]

Waits until all programs are compiled. Prints one JSON line.
"""

import argparse
import json
import time

from quire import Engine, SamplingParams


def rate(engine: Engine, prompts: list[list[int]], params: SamplingParams) -> float:
    """Output tokens per second of one `generate` call, after one to warm up."""
    engine.generate(prompts, params, use_tqdm=False)
    engine.reset_prefix_cache()
    started = time.perf_counter()
    outputs = engine.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - started
    return sum(len(output.outputs[0].token_ids) for output in outputs) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    params = SamplingParams(temperature=0, max_tokens=options.tokens, ignore_eos=True)
    prompts = [[300 + n, *range(400, 423)] for n in range(options.requests)]
    with Engine(use_tqdm_on_load=False, max_num_seqs=options.requests) as engine:
        engine.wait_until_ready()
        one = rate(engine, prompts[:1], params)
        many = rate(engine, prompts, params)
    result = {
        "benchmark": "batching",
        "requests": options.requests,
        "tok_s_one_at_a_time": round(one),
        "tok_s_together": round(many),
        "ratio": round(many / one, 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
