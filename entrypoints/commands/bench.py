"""`quire bench`: how fast a model runs here, and how a server bears load."""

import argparse
import dataclasses
import importlib
import math
from collections.abc import Callable
from typing import TypeAlias

from ... import EngineOptions
from ..arguments import ENGINE_LEFT_OUT, MODEL_HELP, add_engine_options, add_sampling_params
from ..bench import report
from ..bench.workload import SAMPLING

ABOUT = """\
Each prints one line of JSON to stdout: the figures, and the conditions they hold under. What
happens meanwhile is told on stderr."""
LINE = "Prints one line of JSON with the figures and their conditions."
THROUGHPUT = f"""\
Measures how much gets done when many prompts come at once: requests, output tokens, and all tokens
a second, of the median run. Prompts are random token ids, or those of --dataset, whose lines are
JSON objects with a "prompt" (text or token ids) and, if need be, an "output_len". The prefix cache
is emptied before each run. {LINE}"""
LATENCY = f"""\
Measures how long one batch of random prompts takes: median and percentiles of the runs; and
milliseconds an output token, which is (run - the same prompts with one output token) / (output
tokens - 1). The prefix cache is emptied before each run. {LINE}"""
STARTUP = f"""\
Measures how long a new process takes to its first token, and until all programs are compiled.
Each run starts two processes: "cold" with an empty compilation cache, "warm" with what the first
left there. {LINE}"""
SERVE = f"""\
Sends streaming requests to an OpenAI-compatible server and measures requests and output tokens a
second, the time to the first token, and the time between pieces of an answer. Prompts are random,
or those of --dataset, as for `quire bench throughput`. One short request goes first and is not
counted. {LINE}"""

STARTUP_OPTIONS = (
    {field.name for field in dataclasses.fields(EngineOptions)}
    - ENGINE_LEFT_OUT
    - {"compilation_cache_dir"}
)
"""Engine options but for the cache, whose folder is the benchmark's."""

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Reader = Callable[[str], float]


def _reader(kind: type[int] | type[float], allowed: Callable[[float], bool], words: str) -> Reader:
    """Reads a number of the kind, for argparse, and says in `words` what is allowed."""

    def read(text: str) -> float:
        if not allowed(value := kind(text)):
            raise argparse.ArgumentTypeError(f"{text} is not allowed: give {words}")
        return value

    read.__name__ = kind.__name__
    return read


COUNT = _reader(int, lambda value: value >= 1, "1 or more")
COUNT_OR_NONE = _reader(int, lambda value: value >= 0, "0 or more")
ABOVE_ZERO = _reader(float, lambda value: value > 0, "a number above 0")
RATIO = _reader(float, lambda value: 0 <= value < 1, "0 or more, and below 1")


def add_parser(commands: Subparsers) -> None:
    """Adds `bench` and its four benchmarks."""
    text = "measure throughput, latency, startup, or a server under load"
    parser = commands.add_parser("bench", help=text, description=f"{text.capitalize()}. {ABOUT}")
    benchmarks = parser.add_subparsers(metavar="BENCHMARK", required=True)
    _add_throughput(benchmarks)
    _add_latency(benchmarks)
    _add_startup(benchmarks)
    _add_serve(benchmarks)


def run(args: argparse.Namespace) -> int:
    """Runs the benchmark that `args` names and prints its record."""
    report.check_output(args.output)
    benchmark = importlib.import_module(f"..bench.{args.benchmark}", __package__)
    report.write(benchmark.run(args), args.output)
    return 0


def _add_throughput(benchmarks: Subparsers) -> None:
    parser = _add(benchmarks, "throughput", "tokens a second of many prompts at once", THROUGHPUT)
    _add_model(parser)
    _add_prompts(parser)
    _add_timed(parser, 3)


def _add_latency(benchmarks: Subparsers) -> None:
    parser = _add(benchmarks, "latency", "seconds of one batch, and of a token", LATENCY)
    _add_model(parser)
    _number(parser, "--batch-size", COUNT, 8, "prompts, which run together")
    _number(parser, "--input-len", COUNT, 32, "tokens of a prompt")
    _number(parser, "--output-len", COUNT, 128, "tokens generated for a prompt")
    _add_timed(parser, 10)


def _add_startup(benchmarks: Subparsers) -> None:
    parser = _add(benchmarks, "startup", "seconds from a new process to its first token", STARTUP)
    _add_model(parser)
    _number(parser, "--runs", COUNT, 1, "pairs of a cold and a warm start; medians are given")
    text = "do not wait for the programs that compile in the background"
    parser.add_argument("--first-token-only", action="store_true", help=text)
    _add_common(parser)
    add_engine_options(parser, frozenset(STARTUP_OPTIONS))


def _add_serve(benchmarks: Subparsers) -> None:
    parser = _add(benchmarks, "serve", "a server's throughput and latency under load", SERVE)
    parser.add_argument(
        "--base-url",
        default="http://127.0.0.1:8000/v1",
        metavar="URL",
        help="the server's address (default: %(default)s)",
    )
    parser.add_argument(
        "--api-key",
        metavar="KEY",
        help="bearer token (default: the environment has OPENAI_API_KEY)",
    )
    parser.add_argument("--model", help="name to ask for (default: the first the server names)")
    parser.add_argument(
        "--endpoint",
        choices=("completions", "chat"),
        default="completions",
        help="random prompts are token ids for completions, words for chat (default: %(default)s)",
    )
    _add_load(parser)
    _add_prompts(parser)
    text = "random token ids are below this (default: %(default)s)"
    parser.add_argument("--vocab-size", type=COUNT, default=1000, metavar="N", help=text)
    parser.add_argument(
        "--ignore-eos",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="ask for outputs of exact length, as servers for benchmarks understand it (default)",
    )
    _add_common(parser)
    _add_sampling(parser)


def _add_load(parser: argparse.ArgumentParser) -> None:
    text = "requests a second, at random (Poisson) times; inf sends all at once"
    _number(parser, "--request-rate", ABOVE_ZERO, math.inf, text)
    parser.add_argument(
        "--max-concurrency",
        type=COUNT,
        metavar="N",
        help="requests under way at most; others wait, untimed, for their turn (default: no limit)",
    )
    _number(parser, "--timeout", ABOVE_ZERO, 600.0, "seconds after which a request has failed")


def _add_model(parser: argparse.ArgumentParser) -> None:
    text = f"{MODEL_HELP} (default: demo)"
    parser.add_argument("model", nargs="?", metavar="MODEL", help=text)
    text = "load no tokenizer, so that output is token ids: for folders that have none"
    parser.add_argument("--skip-tokenizer-init", action="store_true", help=text)


def _add_prompts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", metavar="FILE", help="JSON lines of prompts")
    parser.add_argument(
        "--num-prompts",
        type=COUNT,
        metavar="N",
        help="prompts (default: 64 random ones, or the whole dataset)",
    )
    text = "tokens of a random prompt (default: 128)"
    parser.add_argument("--input-len", type=COUNT, metavar="N", help=text)
    text = "tokens generated for a prompt, where the dataset does not say"
    _number(parser, "--output-len", COUNT, 128, text)
    parser.add_argument(
        "--range-ratio",
        type=RATIO,
        metavar="RATIO",
        help="random lengths are uniform within this share above and below the two, which is "
        "0 or more and below 1 (default: 0)",
    )


def _add_timed(parser: argparse.ArgumentParser, runs: int) -> None:
    """What the benchmarks take that run prompts through an engine."""
    _number(parser, "--warmup-runs", COUNT_OR_NONE, 1, "runs before those that are timed")
    _number(parser, "--runs", COUNT, runs, "runs that are timed")
    _add_common(parser)
    _add_sampling(parser)
    # prompts of known lengths need few programs, and warm-up runs compile them
    add_engine_options(parser, enforce_eager=True)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="INT",
        help="where all that is random comes from (default: %(default)s)",
    )
    parser.add_argument("--output", metavar="FILE", help="file to append the line to, too")


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    about = "The model's generation config is passed over."
    add_sampling_params(parser, SAMPLING, about, temperature=0.0)


def _add(benchmarks: Subparsers, name: str, text: str, description: str) -> argparse.ArgumentParser:
    parser = benchmarks.add_parser(name, help=text, description=description)
    parser.set_defaults(run=run, benchmark=name)
    return parser


def _number(
    parser: argparse.ArgumentParser,
    flag: str,
    reader: Reader,
    default: float,
    text: str,
) -> None:
    text = f"{text} (default: %(default)s)"
    parser.add_argument(flag, type=reader, default=default, metavar="N", help=text)
