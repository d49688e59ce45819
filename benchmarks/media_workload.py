"""Requests with one medium each, all new, and again with their features kept: how they are timed.

bfloat16, random weights, no tokenizer, greedy, ends of text ignored. The prefix cache is emptied
before every run; the features of media are, too, but for those of `repeated`.
"""

import argparse
import dataclasses
import functools
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_profile
import jax
import llama_8b
import numpy as np

from quire import Engine, SamplingParams
from quire.engine.media_inputs import MediaInputs
from quire.multimodal.names import NOUNS

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures"


@dataclasses.dataclass(frozen=True)
class Workload:
    """A model, and what it is asked."""

    config: dict[str, Any]
    preprocessor: dict[str, Any]
    kind: str
    """Of its media: image, video or audio."""
    medium: Callable[[np.random.Generator], Any]
    """Makes one, always another."""
    described: str
    """What the media are."""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    requests: int = 64
    text_tokens: int = 64
    output_tokens: int = 128
    ids: range = range(1000, 30000)
    """Of which the text is made: none is special."""

    def prompts(self, token: int) -> list[dict[str, Any]]:
        """A medium, for which `token` stands, and some text each, the same on every call."""
        rng, noise = random.Random(0), np.random.default_rng(0)
        return [
            {
                "prompt_token_ids": [token, *rng.choices(self.ids, k=self.text_tokens)],
                "multi_modal_data": {self.kind: self.medium(noise)},
            }
            for _ in range(self.requests)
        ]


OPTIONS: dict[str, Any] = {
    "dtype": "bfloat16",
    "load_format": "dummy",
    "skip_tokenizer_init": True,
    "max_model_len": 4096,
    "max_num_seqs": 64,
    "gpu_memory_utilization": 0.85,
    "use_tqdm_on_load": False,
}


def tiny(workload: Workload, fixture: str, options: dict[str, Any]) -> Workload:
    """A few requests for a model of the tests, with media of their own size."""
    config, preprocessor = (
        json.loads((FIXTURES / fixture / name).read_text())
        for name in ("config.json", "preprocessor_config.json")
    )
    sizes = {"requests": 4, "text_tokens": 8, "output_tokens": 8, "ids": range(8, 90)}
    options = {"max_model_len": 128, **options}
    return dataclasses.replace(
        workload, config=config, preprocessor=preprocessor, options=options, **sizes
    )


def make_folder(workload: Workload) -> Path:
    """A model folder with nothing but what describes the model and its processor."""
    folder = Path(tempfile.mkdtemp())
    (folder / "config.json").write_text(json.dumps(workload.config))
    (folder / "preprocessor_config.json").write_text(json.dumps(workload.preprocessor))
    return folder


def make_engine(workload: Workload) -> Engine:
    """An engine that compiles its greedy programs ahead, and others only when they are needed."""
    with llama_8b.only_greedy_ahead():
        return Engine(make_folder(workload), **(OPTIONS | workload.options))


def inputs(engine: Engine) -> MediaInputs:
    """What reads and prepares media for an engine."""
    media = engine._running.media
    assert media is not None, "a model that takes media"
    return media


def run(engine: Engine, prompts: list[dict[str, Any]], tokens: int, *, keep: bool) -> float:
    """Seconds of one `generate` call with an empty prefix cache; `keep` keeps the features."""
    engine.reset_prefix_cache()
    if not keep:
        with engine._lock:
            engine._running.replicas[0].features.clear()
        inputs(engine).forget()
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    started = time.perf_counter()
    engine.generate(prompts, params, use_tqdm=False)
    return time.perf_counter() - started


def timed(engine: Engine, once: Callable[[], float], runs: int) -> tuple[list[float], int]:
    """Seconds of each of `runs` runs, and how many programs they compiled.

    Others go before, until one finds its programs ready.
    """
    compiled = -1
    while compiled != engine.stats().programs_compiled:
        engine.wait_until_ready()
        compiled = engine.stats().programs_compiled
        once()
        engine.wait_until_ready()
    return [once() for _ in range(runs)], engine.stats().programs_compiled - compiled


def busy_share(once: Callable[[], float], seconds: float) -> float:
    """The share of `seconds`, which a run takes, in which something runs on the GPU.

    What runs is taken from one run more under the profiler, which does not slow kernels down; it
    does slow down the host, and so what is between them.
    """
    events = gpu_profile.device_events(once)
    span = events[-1][0] + events[-1][1] - events[0][0]
    return (span - gpu_profile.idle(events)) / 1e6 / seconds


def rates(workload: Workload, seconds: list[float]) -> dict[str, Any]:
    median = statistics.median(seconds)
    return {
        "s": [round(s, 4) for s in seconds],
        "median_s": round(median, 4),
        f"{NOUNS[workload.kind]}_per_s": round(workload.requests / median, 2),
        "out_tok_s": round(workload.requests * workload.output_tokens / median, 1),
    }


def measure(engine: Engine, workload: Workload, runs: int, *, profile: bool) -> dict[str, Any]:
    """The figures of one model."""
    prompts = workload.prompts(inputs(engine).spec.kinds[workload.kind].token)
    [read] = engine._running.prompts.read(prompts[0]).all()
    once = functools.partial(run, engine, prompts, workload.output_tokens)
    seconds, compiled = timed(engine, functools.partial(once, keep=False), runs)
    features = engine._running.replicas[0].features
    queried, hits = features.queried, features.hits
    again, compiled_again = timed(engine, functools.partial(once, keep=True), runs)
    encoded = features.queried - queried - (features.hits - hits)
    figures = {
        "requests": workload.requests,
        "media": workload.described,
        "features": sum(medium.num_tokens for medium in read.media),
        "text_tokens": workload.text_tokens,
        "output_tokens": workload.output_tokens,
        **rates(workload, seconds),
        "repeated": rates(workload, again) | {"encoded": encoded},
        "programs_compiled": compiled + compiled_again,
    }
    if profile and jax.default_backend() == "gpu":
        median = statistics.median(seconds)
        figures["busy_share"] = round(busy_share(functools.partial(once, keep=False), median), 3)
    elif profile:
        figures |= {"busy_share": None, "note": "not profiled: that needs a GPU"}
    return figures


def main(
    benchmark: str,
    about: str,
    workloads: dict[str, Workload],
    small: dict[str, tuple[str, dict[str, Any]]],
) -> int:
    """Measures what the command line names, and prints a JSON line for each.

    Args:
        about: the first line of its help.
        small: for each workload, the model of the tests that --tiny takes instead, and options.
    """
    parser = argparse.ArgumentParser(description=about)
    names = list(workloads)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(names)}")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--output", type=Path, help="file to append the JSON lines to")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    if unknown := set(args.names) - set(names):
        parser.error(f"unknown models {sorted(unknown)}; there are {', '.join(names)}")
    if args.profile:
        gpu_profile.keep_graphs()
    failed = False
    for name in args.names or names:
        workload = tiny(workloads[name], *small[name]) if args.tiny else workloads[name]
        with make_engine(workload) as engine:
            figures = measure(engine, workload, args.runs, profile=args.profile)
        shown = f"{name}, tiny" if args.tiny else name
        llama_8b.report({"benchmark": benchmark, "model": shown, **figures}, args.output)
        failed |= figures["programs_compiled"] > 0 or figures["repeated"]["encoded"] > 0
    return int(failed)
