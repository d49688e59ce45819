"""The `quire` command."""

import argparse
import os
import sys
from collections.abc import Sequence

from .. import QuireError, __version__
from .commands import batch, bench, chat, convert, generate, info, serve

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv`, by default the process's own; returns the exit status.

    0: done; 1: nobody reads the output any more; 2: a user's mistake, told in one line on stderr;
    130: Ctrl-C.
    """
    return run_command(_parser(), sys.argv[1:] if argv is None else argv)


def run_command(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    """Runs `argv` by a parser that sets `run`; otherwise as `main`."""
    args = parser.parse_args(_dashed(argv))
    try:
        return args.run(args)
    except QuireError as error:
        print(f"quire: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more at exit, and would complain there
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="quire",
        description="LLM inference on NVIDIA GPUs, in JAX. Without a model's name, a small demo "
        "model that comes with Quire answers.",
        epilog="`quire COMMAND --help` tells more about each command.",
    )
    parser.add_argument("--version", action="version", version=f"quire {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (generate, batch, chat, serve, info, convert, bench):
        command.add_parser(commands)
    return parser


def _dashed(argv: Sequence[str]) -> list[str]:
    """Flags may be written as in Python: --max_model_len is --max-model-len."""
    flags_end = argv.index("--") if "--" in argv else len(argv)
    return [_dashed_flag(arg) for arg in argv[:flags_end]] + list(argv[flags_end:])


def _dashed_flag(arg: str) -> str:
    if not arg.startswith("--"):
        return arg
    name, equals, value = arg.partition("=")
    return name.replace("_", "-") + equals + value
