"""What adapters cost: decode steps and prefill with none, one and eight of them, beside the base.

    python benchmarks/lora.py [--runs 3] [--output FILE]

Llama-3.1-8B's shape, random weights; adapters of rank 16 on all linear layers. Three engines, one
after the other: without room for adapters, with one slot, and with eight. Prints one JSON line for
each measurement; `over_base` is the time over that of the first engine, less 1. The last line is of
an adapter that comes from disk while 64 requests decode.
"""

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_8b
import ml_dtypes
import numpy as np
import workloads
from safetensors.numpy import save_file

from quire import Engine, LoRARequest, SamplingParams

RANK = 16


def make_adapter(folder: Path, number: int) -> LoRARequest:
    """A folder as PEFT saves one, of small random numbers."""
    config = llama_8b.CONFIG
    width, inner = config["hidden_size"], config["intermediate_size"]
    kv = width // config["num_attention_heads"] * config["num_key_value_heads"]
    sizes = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (width, kv),
        "self_attn.v_proj": (width, kv),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (width, inner),
        "mlp.up_proj": (width, inner),
        "mlp.down_proj": (inner, width),
    }
    rng = np.random.default_rng(number)
    noise = rng.normal(0, 1e-3, RANK * inner).astype(ml_dtypes.bfloat16)
    tensors: dict[str, np.ndarray] = {}
    for layer in range(config["num_hidden_layers"]):
        for module, (size, out) in sizes.items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{name}.lora_A.weight"] = noise[: RANK * size].reshape(RANK, size)
            tensors[f"{name}.lora_B.weight"] = noise[: RANK * out].reshape(out, RANK)
    folder.mkdir()
    modules = sorted(name.rpartition(".")[2] for name in sizes)
    fields = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": modules}
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    save_file(tensors, folder / "adapter_model.safetensors")
    return LoRARequest(f"adapter {number}", number, str(folder))


def decode_step(engine: Engine, runs: int, adapters: workloads.Adapters = None) -> dict[str, float]:
    """Milliseconds of a decode step of 64 requests."""
    return {"ms_per_step": workloads.measure(engine, "b64_decode", runs, adapters)["ms_per_step"]}


def prefill(engine: Engine, runs: int, adapters: workloads.Adapters = None) -> dict[str, float]:
    """Seconds of prefill_8k."""
    return {"prefill_8k_s": workloads.measure(engine, "prefill_8k", runs, adapters)["median_s"]}


def loading(engine: Engine, request: LoRARequest) -> dict[str, float]:
    """How long an adapter takes from disk to its first token while 64 requests decode.

    `longest_gap_ms` is the longest that those waited for a token meanwhile, `usual_gap_ms` the
    median of what they wait.
    """
    prompts, _ = workloads.prompts_of("b64_decode")
    params = SamplingParams(temperature=0, max_tokens=192, ignore_eos=True)
    found: dict[str, float] = {}

    def load() -> None:
        time.sleep(1.0)
        started = time.perf_counter()
        engine.add_lora(request)
        found["load_s"] = round(time.perf_counter() - started, 3)
        one = SamplingParams(temperature=0, max_tokens=1)
        engine.generate([prompts[0][:16]], one, lora_request=request, use_tqdm=False)
        found["first_token_s"] = round(time.perf_counter() - started, 3)

    compiled = engine.stats().programs_compiled
    gaps: list[float] = []
    pieces = engine.stream(prompts, params)
    next(pieces)
    thread = threading.Thread(target=load)
    thread.start()
    last = time.perf_counter()
    for _ in pieces:
        now = time.perf_counter()
        gaps.append(now - last)
        last = now
    thread.join()
    steps = sorted(gap for gap in gaps if gap > 1e-3)  # pieces of one step come at once
    return found | {
        "usual_gap_ms": round(steps[len(steps) // 2] * 1e3, 2),
        "longest_gap_ms": round(steps[-1] * 1e3, 2),
        "programs_compiled": engine.stats().programs_compiled - compiled,
    }


def ready(engine: Engine, request: LoRARequest) -> dict[str, float]:
    """`loading`, once it finds its programs compiled."""
    while (figures := loading(engine, request))["programs_compiled"]:
        engine.remove_lora(request.lora_int_id)
    return figures


def measurements(runs: int, folder: Path) -> Iterator[dict[str, Any]]:
    adapters = [make_adapter(folder / str(number), number) for number in range(1, 10)]
    options: dict[str, Any] = {"use_tqdm_on_load": False, "enforce_eager": True}
    with llama_8b.make_engine(**options) as engine:
        base = decode_step(engine, runs) | prefill(engine, runs)
    yield {"slots": 0, "adapters": 0, **base}

    def beside_base(adapters: int, slots: int, times: dict[str, float]) -> dict[str, Any]:
        over = {name: round(time / base[name] - 1, 4) for name, time in times.items()}
        return {"slots": slots, "adapters": adapters, **times, "over_base": over}

    options |= {"enable_lora": True, "max_lora_rank": RANK}
    with llama_8b.make_engine(max_loras=1, **options) as engine:
        yield beside_base(1, 1, decode_step(engine, runs, adapters[:1]))
    with llama_8b.make_engine(max_loras=8, **options) as engine:
        for used in (None, adapters[:8]):
            times = decode_step(engine, runs, used) | prefill(engine, runs, used)
            yield beside_base(len(used or ()), 8, times)
        yield {"slots": 8, **ready(engine, adapters[-1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--output", type=Path, help="file to append the JSON lines to")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for figures in measurements(args.runs, Path(folder)):
            llama_8b.report({"benchmark": "lora", **figures}, args.output)


if __name__ == "__main__":
    main()
