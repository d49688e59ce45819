"""Does a server keep up with `Engine.generate`? The same requests, offline and as streams.

    python benchmarks/serve_throughput.py [--streams 256] [--requests 512] [--demo] [-- FLAGS]

Llama-3.1-8B's shape with random weights and the demo model's tokenizer, or with --demo the demo
model, which any machine can run. FLAGS are for both engines.
Each side compiles in a run before the one that counts. Prints one JSON line: output tokens a second
of both, their ratio, and how long the server's event loop let a request for /health wait.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_8b
import serve_load

import quire


def bench(*words: str) -> dict[str, Any]:
    """The figures of one `quire bench`, in a process of its own."""
    code = "import sys; from quire.entrypoints.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "bench", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def served(model: str | None, flags: Sequence[str], streams: int, load: Sequence[str]) -> Any:
    """Output tokens a second of the second of two runs, and the waits for /health in it."""
    with serve_load.server(model, flags) as address:
        words = ["serve", "--base-url", f"{address}/v1", "--max-concurrency", str(streams), *load]
        bench(*words)
        with serve_load.probing(address) as probed:
            figures = bench(*words)
            latencies, failures = probed()
    if figures["failed"] or failures:
        raise SystemExit(f"requests failed: {figures['errors']} {failures}")
    return figures["output_tokens_per_s"], [latency for _, latency in latencies]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--streams", type=int, default=256, help="at once")
    parser.add_argument("--requests", type=int, default=512)
    parser.add_argument("--input-len", type=int, default=256)
    parser.add_argument("--output-len", type=int, default=256)
    parser.add_argument("--demo", action="store_true", help="the demo model")
    parser.add_argument("engine_flags", nargs="*", help="after --: flags of both engines")
    args = parser.parse_args()
    model, flags = None, ["--enforce-eager", "--max-num-seqs", str(args.streams)]
    flags += args.engine_flags
    if not args.demo:
        model = str(llama_8b.make_folder())
        flags += ["--load-format", "dummy", "--max-model-len", "10240"]
        flags += ["--tokenizer", str(Path(quire.__file__).parent / "models" / "demo")]
    load = ["--num-prompts", str(args.requests), "--input-len", str(args.input_len)]
    load += ["--output-len", str(args.output_len)]
    named = [] if model is None else [model]
    offline = bench("throughput", *named, *load, "--runs", "1", *flags)
    rate, waits = served(model, flags, args.streams, load)
    record = {
        "benchmark": "serve_throughput",
        "streams": args.streams,
        "requests": args.requests,
        "offline_tokens_per_s": offline["output_tokens_per_s"],
        "served_tokens_per_s": rate,
        "ratio": round(rate / offline["output_tokens_per_s"], 3),
        "health_ms": serve_load.spread(waits, 1e3),
    }
    print(json.dumps(record | llama_8b.conditions()))


if __name__ == "__main__":
    main()
