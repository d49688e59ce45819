"""`quire generate`: completes prompts from the command line or answers a file of them."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import OptionError, SamplingParams
from ..arguments import (
    add_engine_options,
    add_model_flag,
    add_sampling_params,
    engine_options,
    sampling_params,
)
from ..following import follows
from ..jobs import Job, read_jobs, result

if TYPE_CHECKING:
    from ... import Engine, RequestOutput

MAX_TOKENS = 128
USAGE = """\
%(prog)s PROMPT ... [options]
       %(prog)s --input FILE [--output FILE] [options]"""
FILES = """\
Lines of --input are JSON objects with a prompt (text or token ids) or messages (a conversation),
and may have an id and sampling parameters of their own, such as "temperature". Lines of the output
keep their order and what they had, and gain text, finish_reason, completion_tokens and
prompt_tokens; with n above 1 the first three are lists."""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `generate`."""
    parser = commands.add_parser(
        "generate",
        usage=USAGE,
        help="complete prompts, or answer a file of prompts",
        description="Completes prompts. Several are batched together.",
        epilog=FILES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="text to go on with")
    add_model_flag(parser)
    parser.add_argument("--input", metavar="FILE", help="JSON lines to answer; - is stdin")
    parser.add_argument("--output", metavar="FILE", help="where answers go (default: stdout)")
    parser.add_argument("--stream", action="store_true", help="show the text as it is made")
    add_sampling_params(parser, max_tokens=MAX_TOKENS)
    add_engine_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Checks everything that needs no model, then loads it and answers."""
    from ... import Engine

    given = sampling_params(args)
    jobs = _jobs(args, given)
    _check(args, jobs, given)
    options = {
        "use_tqdm_on_load": sys.stderr.isatty(),
        # a few prompts need few programs, and whatever compiles ahead delays the exit
        "enforce_eager": args.input is None,
        **engine_options(args),
    }
    if follows(args.model, options):
        return 0
    with Engine(args.model, **options) as engine:
        defaults = engine.get_default_sampling_params()
        params = [dataclasses.replace(defaults, **{**given, **job.sampling}) for job in jobs]
        if args.stream:
            _stream(engine, jobs[0], params[0])
            return 0
        outputs = _answer(engine, jobs, params)
    _write(args, jobs, outputs)
    return 0


def _jobs(args: argparse.Namespace, given: dict[str, Any]) -> list[Job]:
    if bool(args.prompts) == bool(args.input):
        raise OptionError("give either prompts or --input, such as: quire generate 'Once upon'.")
    if args.prompts:
        SamplingParams(**given)
        return [Job({"prompt": prompt}) for prompt in args.prompts]
    if args.input == "-":
        return read_jobs("stdin", sys.stdin, given)
    try:
        with Path(args.input).open(encoding="utf-8") as file:
            return read_jobs(args.input, file, given)
    except (OSError, UnicodeError) as error:
        raise OptionError(f"--input {args.input} cannot be read: {error}.") from error


def _check(args: argparse.Namespace, jobs: Sequence[Job], given: dict[str, Any]) -> None:
    if args.output is not None:
        if args.input is None:
            raise OptionError("--output needs --input. Text of prompts goes to stdout.")
        try:
            Path(args.output).open("a").close()
        except OSError as error:
            raise OptionError(f"--output {args.output} cannot be written: {error}.") from error
    if args.stream and (len(jobs) > 1 or args.input or given.get("n", 1) > 1):
        raise OptionError("--stream shows one text: give one prompt, no --input and no --n.")


def _stream(engine: "Engine", job: Job, params: SamplingParams) -> None:
    for piece in engine.stream(job.source, params):
        print(piece.outputs[0].text, end="", flush=True)
    print()


def _answer(
    engine: "Engine", jobs: Sequence[Job], params: Sequence[SamplingParams]
) -> "list[RequestOutput]":
    """One output a job, in order; prompts are one batch and conversations another."""
    found: dict[int, RequestOutput] = {}
    for is_chat, ask in ((False, engine.generate), (True, engine.chat)):
        chosen = [i for i, job in enumerate(jobs) if job.is_chat == is_chat]
        if chosen:
            sources, each = [jobs[i].source for i in chosen], [params[i] for i in chosen]
            answers = ask(sources, each, use_tqdm=sys.stderr.isatty())
            found.update(zip(chosen, answers, strict=True))
    return [found[i] for i in range(len(jobs))]


def _write(
    args: argparse.Namespace, jobs: Sequence[Job], outputs: "Sequence[RequestOutput]"
) -> None:
    if args.input is None:
        lines: Iterable[str] = _texts(outputs)
    else:
        pairs = zip(jobs, outputs, strict=True)
        lines = (json.dumps(result(job, one), ensure_ascii=False) for job, one in pairs)
    if args.output is None:
        print(*lines, sep="\n")
        return
    with Path(args.output).open("w", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in lines)


def _texts(outputs: "Sequence[RequestOutput]") -> list[str]:
    """The text of one output; several have their prompts above them."""
    texts = [(output.prompt, one.text) for output in outputs for one in output.outputs]
    if len(texts) == 1:
        return [texts[0][1]]
    return [f"==> {prompt} <==\n{text}\n" for prompt, text in texts]
