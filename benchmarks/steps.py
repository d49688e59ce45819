"""Milliseconds of a decode step, and seconds of a prefill, through `Engine.generate`.

    python benchmarks/steps.py [--batches 1x32 64x1024] [--temperature 0]

Llama-3.1-8B's shape in its config's type, random weights, token ids in and out. A step is (time of
a run - time of the same prompts with one output token) / (output tokens - 1), the median of three
runs after a warm-up, with the prefix cache emptied before each. Prints one JSON line a batch.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from quire import Engine, SamplingParams

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
OUTPUT_TOKENS = 65


def seconds(engine: Engine, prompts: list[list[int]], tokens: int, temperature: float) -> float:
    """Median wall time of a `generate` call, once its programs are compiled."""
    params = SamplingParams(temperature=temperature, seed=1, max_tokens=tokens, ignore_eos=True)
    times = []
    for run in range(4):
        engine.reset_prefix_cache()
        started = time.perf_counter()
        engine.generate(prompts, params, use_tqdm=False)
        times.append(time.perf_counter() - started)
        if run == 0:
            engine.wait_until_ready()
    return statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--batches", nargs="+", default=["1x32", "64x1024"], help="requests x tokens"
    )
    parser.add_argument("--temperature", type=float, default=0.0)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    (folder / "config.json").write_text(json.dumps(LLAMA_8B))
    started = time.perf_counter()
    engine = Engine(
        folder,
        load_format="dummy",
        skip_tokenizer_init=True,
        enforce_eager=True,
        max_model_len=10240,
        max_num_batched_tokens=2048,
        gpu_memory_utilization=0.85,
    )
    print(json.dumps({"engine_start_s": round(time.perf_counter() - started, 1)}), flush=True)
    for batch in options.batches:
        count, length = map(int, batch.split("x"))
        prompts = [[(7 * i + j) % 1000 + 100 for j in range(length)] for i in range(count)]
        one, many = (seconds(engine, prompts, n, options.temperature) for n in (1, OUTPUT_TOKENS))
        result = {
            "benchmark": "steps",
            "batch": batch,
            "temperature": options.temperature,
            "prefill_s": round(one, 3),
            "ms_per_step": round((many - one) / (OUTPUT_TOKENS - 1) * 1e3, 2),
        }
        print(json.dumps(result), flush=True)
    engine.close()


if __name__ == "__main__":
    main()
