"""`quire batch`: answers a file of rows, however many."""

import argparse
import sys

from ... import EngineClosedError
from ..arguments import (
    add_engine_options,
    add_model_flag,
    add_options,
    add_sampling_params,
    engine_options,
    options,
    sampling_params,
)
from ..batch.options import BatchOptions
from ..following import follows

ABOUT = """\
Answers the rows of INPUT, in their order, into OUTPUT; both are JSON lines (.jsonl) or Parquet
(.parquet). A row has a prompt (text or token ids) or messages (a conversation), and may have
sampling parameters of its own, such as temperature, and the name of an adapter as lora. OUTPUT has
all its columns and text, finish_reason, prompt_tokens, completion_tokens and error. Lines of
OpenAI's batch files are answered in OpenAI's form. A run that was killed goes on where it was when
it is started again."""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `batch`."""
    parser = commands.add_parser(
        "batch",
        usage="%(prog)s INPUT OUTPUT [options]",
        help="answer a file of rows, however many, so that a killed run can go on",
        description=ABOUT,
    )
    parser.add_argument("input", metavar="INPUT", help="JSON lines or Parquet to answer")
    parser.add_argument("output", metavar="OUTPUT", help="JSON lines or Parquet to write")
    add_model_flag(parser)
    add_options(parser, "batch", BatchOptions, frozenset())
    add_sampling_params(parser, max_tokens=None)
    add_engine_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0 when every row is written; 1 where the engine died or a disk failed."""
    from ..batch.running import run as run_batch

    shown = sys.stderr.isatty()
    given = {"use_tqdm_on_load": shown, **engine_options(args)}
    if follows(args.model, given):
        return 0
    given |= options(args, BatchOptions, frozenset())
    try:
        summary = run_batch(
            args.input,
            args.output,
            args.model,
            sampling_params=sampling_params(args),
            use_tqdm=shown,
            **given,
        )
    except (EngineClosedError, OSError) as error:
        print(f"quire: error: {error} {_kept(args.output)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"quire: interrupted. {_kept(args.output)}", file=sys.stderr)
        raise
    print(summary)
    return 0


def _kept(output: str) -> str:
    return f"What is answered so far is kept: the same command goes on behind it, into {output}."
