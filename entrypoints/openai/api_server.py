"""`python -m quire.entrypoints.openai.api_server --model MODEL`: the same as `quire serve`."""

import argparse
import sys
from collections.abc import Sequence

from ..arguments import add_model_flag
from ..cli import run_command
from ..commands import serve
from .options import add_flags


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until a signal comes; returns the exit status, as `quire serve` does."""
    parser = argparse.ArgumentParser(
        prog="python -m quire.entrypoints.openai.api_server", description=serve.ABOUT
    )
    add_model_flag(parser)
    add_flags(parser)
    parser.set_defaults(run=serve.run)
    return run_command(parser, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
