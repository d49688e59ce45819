"""Where the time of a workload goes on the GPU: kernels, by time, and how long none ran.

    python benchmarks/gpu_profile.py NAME [--requests N] [--tokens N] [--top 30]

Runs a workload of workloads.json once under JAX's profiler, after a warm-up, with CUDA graphs as
they are without it. Prints a table.
"""

import argparse
import collections
import functools
import glob
import os
import re
import tempfile
from collections.abc import Callable

import jax
import llama_8b
import workloads


def keep_graphs() -> None:
    """Lets XLA launch CUDA graphs while it is profiled, too; otherwise it launches each kernel,
    and gaps are wider than they are. Call it before JAX has used a device.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_enable_command_buffers_during_profiling"


def device_events(run: Callable[[], object]) -> list[tuple[float, float, str]]:
    """Of all kernels and copies of a run on the GPU, in order: start and duration in us, and name.

    `run` must wait for what it starts.
    """
    options = jax.profiler.ProfileOptions()
    options.host_tracer_level = options.python_tracer_level = 0  # they slow the host down
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            run()
        [path] = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        data = jax.profiler.ProfileData.from_file(path)
    events = [
        (event.start_ns / 1e3, event.duration_ns / 1e3, event.name)
        for plane in data.planes
        if "/device:GPU" in plane.name
        for line in plane.lines
        if line.name.startswith("Stream")
        for event in line.events
    ]
    return sorted(events)


def idle(events: list[tuple[float, float, str]]) -> float:
    """Microseconds between the first and the last event in which none ran."""
    gaps, end = 0.0, events[0][0]
    for start, duration, _ in events:
        gaps += max(0.0, start - end)
        end = max(end, start + duration)
    return gaps


def table(events: list[tuple[float, float, str]], top: int) -> None:
    """Prints the `top` kernels by their time, those that differ in a number as one."""
    total: dict[str, float] = collections.defaultdict(float)
    count: dict[str, int] = collections.defaultdict(int)
    for _, duration, name in events:
        name = re.sub(r"_\d+$", "", name)[:90]
        total[name] += duration
        count[name] += 1
    busy = sum(total.values())
    span = events[-1][0] + events[-1][1] - events[0][0]
    print(f"span {span / 1e3:.2f} ms, busy {busy / 1e3:.2f} ms, idle {idle(events) / 1e3:.2f} ms")
    for name, took in sorted(total.items(), key=lambda item: -item[1])[:top]:
        mean = took / count[name]
        print(f"{took / 1e3:10.3f} ms {took / busy:6.1%} {count[name]:7d} x {mean:9.2f} us  {name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", metavar="NAME")
    parser.add_argument("--requests", type=int, help="only the first N requests")
    parser.add_argument("--tokens", type=int, help="at most N output tokens a request")
    parser.add_argument("--top", type=int, default=30)
    options = parser.parse_args()
    keep_graphs()
    with llama_8b.make_greedy_engine(use_tqdm_on_load=False) as engine:
        for name in options.names:
            prompts, lengths = workloads.prompts_of(name)
            prompts = prompts[: options.requests]
            lengths = [min(n, options.tokens or n) for n in lengths[: options.requests]]
            workloads.timed(engine, prompts, lengths, 1)
            events = device_events(functools.partial(workloads.run, engine, prompts, lengths))
            print(f"== {name}")
            table(events, options.top)


if __name__ == "__main__":
    main()
