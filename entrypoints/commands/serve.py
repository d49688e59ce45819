"""`quire serve`: an OpenAI-compatible server."""

import argparse

from ... import OptionError
from ..arguments import MODEL_HELP
from ..extras import need
from ..following import follows
from ..openai.options import add_flags, read_flags, several_given

ABOUT = """\
Serves a model to programs written for the OpenAI API, at http://localhost:8000/v1 if no flag says
otherwise. SIGTERM or Ctrl-C ends it once the requests that run are answered; a second one ends it
at once."""
NEEDED = ("fastapi", "uvicorn", "prometheus_client")


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `serve`."""
    parser = commands.add_parser(
        "serve",
        usage="%(prog)s [MODEL] [options]",
        help="serve a model to programs written for the OpenAI API",
        description=ABOUT,
    )
    text = f"{MODEL_HELP} (default: demo)"
    parser.add_argument("model", nargs="?", metavar="MODEL", help=text)
    add_flags(parser)
    parser.set_defaults(run=run_first)


def run_first(args: argparse.Namespace) -> int:
    """`run`, but where a flag of several values may have swallowed MODEL. Raises OptionError."""
    if args.model is None and (flags := several_given(args)):
        raise OptionError(
            f"no MODEL was given, unless {flags[0]} took it, which takes several values. Put MODEL "
            "first, as in `quire serve MODEL --api-key A B`."
        )
    return run(args)


def run(args: argparse.Namespace) -> int:
    """Serves until a signal comes; 1 if the engine died. Raises QuireError for a mistake."""
    need(NEEDED, "the server needs", "server")
    options, engine = read_flags(args)
    if follows(args.model, engine):
        return 0
    from ..openai import server

    return server.run(args.model, options, engine)
