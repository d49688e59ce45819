"""`quire chat`: a conversation in the terminal."""

import argparse
import contextlib
import dataclasses
import sys
from typing import TYPE_CHECKING

from ... import QuireError
from ..arguments import (
    add_engine_options,
    add_model_flag,
    add_sampling_params,
    engine_options,
    sampling_params,
)

if TYPE_CHECKING:
    from ... import Engine, SamplingParams

HELP = "/reset starts over, /exit or Ctrl-D ends, Ctrl-C stops an answer."


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `chat`."""
    parser = commands.add_parser(
        "chat",
        usage="%(prog)s [options]",
        help="talk with a model in the terminal",
        description=f"Talks with a model; answers appear as they are made. {HELP}",
    )
    add_model_flag(parser)
    parser.add_argument("--system", metavar="TEXT", help="what the model is told before all turns")
    add_sampling_params(parser, max_tokens=None)
    add_engine_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Reads turns from stdin until it ends or says /exit."""
    from ... import Engine, SamplingParams

    given = sampling_params(args)
    SamplingParams(**given)  # a mistake is told before the model loads
    options = {"use_tqdm_on_load": sys.stderr.isatty(), **engine_options(args)}
    with Engine(args.model, **options) as engine:
        params = dataclasses.replace(engine.get_default_sampling_params(), **given)
        _converse(engine, params, args.system)
    return 0


class Conversation:
    """The turns so far, in OpenAI's form."""

    def __init__(self, engine: "Engine", params: "SamplingParams", system: str | None) -> None:
        self._engine = engine
        self._params = params
        self._start = [{"role": "system", "content": system}] if system else []
        self.messages = list(self._start)

    def reset(self) -> None:
        """Forgets all turns but the system's."""
        self.messages = list(self._start)

    def ask(self, text: str) -> None:
        """Prints the answer to `text` as it comes; Ctrl-C ends it there. Both turns are kept.

        A QuireError, such as a conversation grown too long, is told and `text` is forgotten.
        """
        turns = [*self.messages, {"role": "user", "content": text}]
        answer: list[str] = []
        try:
            with contextlib.suppress(KeyboardInterrupt):
                for piece in self._engine.stream_chat(turns, self._params):
                    answer.append(piece.outputs[0].text)
                    print(answer[-1], end="", flush=True)
        except QuireError as error:
            print(f"quire: error: {error} /reset starts over.", file=sys.stderr)
            return
        print()
        self.messages = [*turns, {"role": "assistant", "content": "".join(answer)}]


def _converse(engine: "Engine", params: "SamplingParams", system: str | None) -> None:
    conversation = Conversation(engine, params, system)
    interactive = sys.stdin.isatty()
    if interactive:
        print(HELP, file=sys.stderr)
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  gives input() history and line editing
    while (text := _read("> " if interactive else "")) != "/exit":
        if text == "/reset":
            conversation.reset()
        elif text.startswith("/"):
            print(f"There is no command {text}. {HELP}", file=sys.stderr)
        elif text:
            conversation.ask(text)


def _read(prompt: str) -> str:
    """A line without the space around it; /exit at the end of input, nothing after Ctrl-C."""
    try:
        return input(prompt).strip()
    except EOFError:
        if prompt:
            print()
        return "/exit"
    except KeyboardInterrupt:
        print()
        return ""
