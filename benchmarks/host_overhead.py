"""Host time of a decode step: schedule + build + process, without the device.

    python benchmarks/host_overhead.py [--requests 256] [--steps 400] [--stream]

Runs the engine's own loop over a runner that builds each batch and then answers at once, so that
what is timed is all the host does for a step. Prints one JSON line.
"""

import argparse
import json
import statistics
import time
from types import SimpleNamespace
from typing import Any

import numpy as np

from quire.engine.batch import BatchBuilder
from quire.engine.buckets import Buckets, Variant
from quire.engine.core import EngineCore
from quire.engine.logprobs import LogprobReader
from quire.engine.model import DEMO_FOLDER
from quire.engine.output_processor import OutputProcessor
from quire.engine.page_pool import PagePool
from quire.engine.request import Request, Sequence
from quire.engine.sampling_params import RequestOutputKind, SamplingParams
from quire.engine.schedule import Schedule
from quire.engine.scheduler import Scheduler
from quire.engine.scheduler_config import SchedulerConfig
from quire.engine.tokenizer import Tokenizer

PAGE_SIZE = 16
VOCAB = 1000


class HostRunner:
    """Does the host's half of `ModelRunner.run`; its tokens are drawn once and reused."""

    def __init__(self, buckets: Buckets) -> None:
        self._buckets = buckets
        self._builder = BatchBuilder(buckets.max_num_seqs, PAGE_SIZE)
        tokens = np.random.default_rng(0).integers(300, VOCAB, buckets.max_num_seqs)
        self._output = SimpleNamespace(tokens=tokens, logprobs=None, hidden=None)

    def admit(self, sequence: Sequence, tables: object) -> None:
        self._builder.admit(sequence, sequence.request.params)

    def run(self, schedule: Schedule, variant: Variant) -> Any:
        if schedule.decode_only:
            program = self._buckets.decode(len(schedule.chunks), variant)
        else:
            program = self._buckets.mixed(schedule.num_tokens, variant)
            schedule.new_pages = schedule.new_pages[: program.rows]
        self._builder.build(schedule, program)
        return self._output


def make_core(num_requests: int, steps: int, stream: bool) -> EngineCore:
    """An engine in which `num_requests` requests of 512 tokens have just been prefilled."""
    buckets = Buckets(num_requests, 8192)
    pool = PagePool(num_requests * ((512 + steps) // PAGE_SIZE + 4), PAGE_SIZE)
    config = SchedulerConfig(
        max_num_seqs=num_requests, max_num_batched_tokens=8192, max_model_len=8192
    )
    runner: Any = HostRunner(buckets)
    reader = LogprobReader(runner, None, 20)
    outputs = OutputProcessor(Tokenizer(DEMO_FOLDER), reader)
    core = EngineCore(Scheduler(config, pool), runner, reader, outputs, VOCAB)
    rng = np.random.default_rng(1)
    kind = RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY
    for number in range(num_requests):
        prompt = rng.integers(300, VOCAB, 512).tolist()
        params = SamplingParams(temperature=0.8, top_p=0.95, max_tokens=10**6)
        request = Request(str(number), None, prompt, params, number, output_kind=kind)
        request.variant = Variant.SAMPLED
        request.sequences.append(Sequence(request, 0, list(prompt), 512, 8192, key=(1, number)))
        core.add(request, lambda output: None)
    for _ in range(num_requests * 512 // 8192 + 2):
        core.step()
    return core


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--stream", action="store_true", help="emit a delta a request and step")
    options = parser.parse_args()
    core = make_core(options.requests, options.steps, options.stream)
    times = []
    for _ in range(options.steps):
        started = time.perf_counter()
        core.step()
        times.append(time.perf_counter() - started)
    result = {
        "benchmark": "host_overhead",
        "requests": options.requests,
        "stream": options.stream,
        "median_ms_per_step": round(statistics.median(times) * 1e3, 3),
        "p90_ms_per_step": round(sorted(times)[int(len(times) * 0.9)] * 1e3, 3),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
