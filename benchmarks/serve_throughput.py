"""Does a server keep up with `Engine.generate`? The same requests, offline and as streams.

    python benchmarks/serve_throughput.py [--streams 256] [--requests 512] [--demo] [-- FLAGS]

Llama-3.1-8B's shape with random weights and a tokenizer of made-up words, or with --demo the demo
model, which any machine can run. FLAGS are for both engines.
What counts is the first run that finds all its programs compiled. Prints one JSON line: output
tokens a second of both, their ratio, and how long the server's event loop let a request for /health
wait.
"""

import argparse
import json
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from typing import Any

import llama_8b
import serve_load

MOST_RUNS = 10


def bench(*words: str) -> dict[str, Any]:
    """The figures of one `quire bench`, in a process of its own."""
    code = "import sys; from quire.entrypoints.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "bench", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def served(model: str | None, flags: Sequence[str], streams: int, load: Sequence[str]) -> Any:
    """Of the first run that compiles nothing: output tokens a second, and waits for /health."""
    with serve_load.server(model, flags) as address:
        words = ["serve", "--base-url", f"{address}/v1", "--max-concurrency", str(streams), *load]
        for _ in range(MOST_RUNS):
            before = programs_compiled(address)
            with serve_load.probing(address) as probed:
                figures = bench(*words)
                latencies, failures = probed()
            if figures["failed"] or failures:
                raise SystemExit(f"requests failed: {figures['errors']} {failures}")
            if programs_compiled(address) == before:
                return figures["output_tokens_per_s"], [latency for _, latency in latencies]
    raise SystemExit(f"the server still compiled something in each of {MOST_RUNS} runs")


def programs_compiled(address: str) -> float:
    """As the server's metrics say."""
    with urllib.request.urlopen(f"{address}/metrics") as answer:
        return serve_load.metric(answer.read().decode(), "programs_compiled_total")


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
        folder = llama_8b.make_folder()
        llama_8b.write_tokenizer(folder)
        model = str(folder)
        flags += ["--load-format", "dummy", "--max-model-len", "10240"]
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
    llama_8b.report(record, None)


if __name__ == "__main__":
    main()
