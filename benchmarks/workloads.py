"""Times the workloads of workloads.json through `Engine.generate`, token ids in and out.

    python benchmarks/workloads.py [NAME ...] [--runs 3] [--output FILE]
    python benchmarks/workloads.py b1_decode --tensor-parallel-size 2
    python benchmarks/workloads.py chat_mix --data-parallel-size 4 --times 4
    python benchmarks/workloads.py b64_decode --shape 70b --tensor-parallel-size 4

Llama-3.1's shapes, random weights, greedy, ends of text ignored. The prefix cache is emptied
before every run. "ms a step" is (run - the same prompts with one output token) / (tokens - 1);
"bandwidth_share" is what a step must read at least, the weights and the K and V of the tokens so
far, in that time, over what the GPUs can read together.
Prints one JSON line a workload; seconds are medians of the runs, after one to warm up.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_8b

from quire import Engine, LoRARequest, SamplingParams

SPEC = json.loads(Path(__file__).with_name("workloads.json").read_text())
STEPPED = ("b1_decode", "b64_decode")
"""Workloads that are given in milliseconds a step, too."""


BANDWIDTH = 4.8e12
"""Bytes a second of an H200's memory, by its data sheet."""


def prompts_of(name: str, times: int = 1) -> tuple[list[list[int]], list[int]]:
    """The token ids of each prompt and the tokens to generate; the same for every engine.

    Args:
        times: so many times as many requests, with prompts of their own.
    """
    workload = SPEC["workloads"][name]
    rng = random.Random(SPEC["seed"])

    def draw(count: int) -> list[int]:
        return [rng.randrange(SPEC["vocab_low"], SPEC["vocab_high"]) for _ in range(count)]

    shared = draw(workload.get("shared_prefix_tokens", 0))
    requests = workload["requests"] * times
    return [shared + draw(p - len(shared)) for p, _ in requests], [o for _, o in requests]


Adapters = Sequence[LoRARequest] | None


def run(
    engine: Engine, prompts: list[list[int]], lengths: list[int], adapters: Adapters = None
) -> float:
    """Seconds of one `generate` call with an empty prefix cache."""
    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in lengths]
    engine.reset_prefix_cache()
    started = time.perf_counter()
    engine.generate(prompts, params, lora_request=adapters, use_tqdm=False)
    return time.perf_counter() - started


def timed(
    engine: Engine,
    prompts: list[list[int]],
    lengths: list[int],
    runs: int,
    adapters: Adapters = None,
) -> list[float]:
    """Seconds of each of `runs` runs, after some to warm up: until one finds its programs ready."""
    compiled = -1
    while compiled != engine.stats().programs_compiled:
        engine.wait_until_ready()
        compiled = engine.stats().programs_compiled
        run(engine, prompts, lengths, adapters)
        engine.wait_until_ready()
    return [run(engine, prompts, lengths, adapters) for _ in range(runs)]


def measure(
    engine: Engine, name: str, runs: int, adapters: Adapters = None, times: int = 1
) -> dict[str, Any]:
    """The figures of one workload, so many times; its requests take the adapters in turn."""
    prompts, lengths = prompts_of(name, times)
    each = None if adapters is None else [adapters[i % len(adapters)] for i in range(len(prompts))]
    seconds = timed(engine, prompts, lengths, runs, each)
    median = statistics.median(seconds)
    figures: dict[str, Any] = {
        "benchmark": "workload",
        "engine": "quire",
        "workload": name,
        "s": [round(s, 4) for s in seconds],
        "median_s": round(median, 4),
        "out_tok_s": round(sum(lengths) / median, 1),
        "total_tok_s": round((sum(lengths) + sum(map(len, prompts))) / median, 1),
    }
    if name in STEPPED:
        first = statistics.median(timed(engine, prompts, [1] * len(prompts), runs, each))
        figures["first_token_s"] = round(first, 4)
        step = (median - first) / (lengths[0] - 1)
        figures["ms_per_step"] = round(step * 1e3, 3)
        gpus = engine.options.tensor_parallel_size * engine.options.data_parallel_size
        read = bytes_of_a_step(engine, prompts, lengths)
        figures["bandwidth_share"] = round(read / step / (BANDWIDTH * gpus), 3)
    return figures


def bytes_of_a_step(engine: Engine, prompts: list[list[int]], lengths: list[int]) -> float:
    """What a decode step must read, on all GPUs together and halfway through the output."""
    spec = engine._running.spec
    weights = spec.device_bytes * spec.devices
    embeddings = spec.shapes["embed.weight"]
    weights -= embeddings.size * embeddings.dtype.itemsize  # of which it reads a row a token
    tokens = sum(len(p) + n / 2 for p, n in zip(prompts, lengths, strict=True))
    model = spec.config
    token = 2 * model.num_layers * model.num_kv_heads * model.head_dim * spec.cache_dtype.itemsize
    return weights + tokens * token


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    names = list(SPEC["workloads"])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(names)}")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--shape", choices=list(llama_8b.SHAPES), default="8b")
    parser.add_argument("--tensor-parallel-size", type=int, default=1, metavar="N")
    parser.add_argument("--data-parallel-size", type=int, default=1, metavar="N")
    parser.add_argument("--times", type=int, default=1, help="so many times as many requests")
    parser.add_argument("--output", type=Path, help="file to append the JSON lines to")
    options = parser.parse_args()
    if unknown := set(options.names) - set(names):
        parser.error(f"unknown workloads {sorted(unknown)}; there are {', '.join(names)}")
    started = time.perf_counter()
    several = {
        "tensor_parallel_size": options.tensor_parallel_size,
        "data_parallel_size": options.data_parallel_size,
    }
    with llama_8b.make_greedy_engine(options.shape, use_tqdm_on_load=False, **several) as engine:
        start = round(time.perf_counter() - started, 1)
        scale = {"shape": options.shape, "times": options.times} | several
        made = {"engine_start_s": start}
        if scale != {"shape": "8b", "times": 1} | dict.fromkeys(several, 1):
            made |= {"benchmark": "scaled_workload"} | scale  # not one that the peer ran
        for name in options.names or names:
            figures = measure(engine, name, options.runs, times=options.times)
            llama_8b.report(figures | made, options.output)


if __name__ == "__main__":
    main()
