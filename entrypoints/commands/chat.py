"""`quire chat`: a conversation in the terminal, with a model or a running server."""

import argparse
import contextlib
import dataclasses
import os
import sys
from collections.abc import Generator, Iterator
from typing import Any, Protocol

from ... import OptionError, QuireError
from ..arguments import (
    add_engine_options,
    add_model_flag,
    add_sampling_params,
    engine_options,
    sampling_params,
)
from ..following import follows

HELP = "/reset starts over, /exit or Ctrl-D ends, Ctrl-C stops an answer."
Message = dict[str, Any]


class Answers(Protocol):
    """Gives the answer to a conversation, piece by piece. Closing the generator stops it.

    Raises QuireError where there is none, such as for a conversation grown too long.
    """

    def __call__(self, messages: list[Message]) -> Generator[str]: ...


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `chat`."""
    parser = commands.add_parser(
        "chat",
        usage="%(prog)s [options]",
        help="talk with a model in the terminal",
        description=f"Talks with a model; answers appear as they are made. {HELP}",
    )
    add_model_flag(parser)
    parser.add_argument(
        "--url",
        help="talk with the OpenAI-compatible server there, such as http://localhost:8000/v1; "
        "--model is then one of its models (default: its first), and no engine is made",
    )
    parser.add_argument(
        "--api-key", metavar="KEY", help="of the server (default: the variable OPENAI_API_KEY)"
    )
    parser.add_argument("--system", metavar="TEXT", help="what the model is told before all turns")
    add_sampling_params(parser, max_tokens=None)
    add_engine_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Reads turns from stdin until it ends or says /exit."""
    from ... import SamplingParams

    given = sampling_params(args)
    SamplingParams(**given)  # a mistake is told before the model loads
    if args.url is None and follows(args.model, engine_options(args)):
        return 0
    with _answers(args, given) as answers:
        _converse(answers, args.system)
    return 0


def _answers(
    args: argparse.Namespace, given: dict[str, Any]
) -> contextlib.AbstractContextManager[Answers]:
    if args.url is None:
        if args.api_key is not None:
            raise OptionError("--api-key is for a server: give --url too.")
        return _engine_answers(args, given)
    if options := engine_options(args):
        flags = ", ".join("--" + name.replace("_", "-") for name in options)
        raise OptionError(f"{flags}: the server at --url has its own engine. Leave them out.")
    return _server_answers(args, given)


@contextlib.contextmanager
def _engine_answers(args: argparse.Namespace, given: dict[str, Any]) -> Iterator[Answers]:
    from ... import Engine

    options = {"use_tqdm_on_load": sys.stderr.isatty(), **engine_options(args)}
    with Engine(args.model, **options) as engine:
        params = dataclasses.replace(engine.get_default_sampling_params(), **given)

        def answers(messages: list[Message]) -> Generator[str]:
            for piece in engine.stream_chat(messages, params):
                yield piece.outputs[0].text

        yield answers


@contextlib.contextmanager
def _server_answers(args: argparse.Namespace, given: dict[str, Any]) -> Iterator[Answers]:
    from ..remote_chat import RemoteChat

    key = args.api_key or os.environ.get("OPENAI_API_KEY")
    # a field that is None is one that the server is to choose
    fields = {name: value for name, value in given.items() if value is not None}
    with RemoteChat(args.url, key, args.model, fields) as remote:
        yield remote.answers


class Conversation:
    """The turns so far, in OpenAI's form."""

    def __init__(self, answers: Answers, system: str | None) -> None:
        self._answers = answers
        self._start = [{"role": "system", "content": system}] if system else []
        self.messages: list[Message] = list(self._start)

    def reset(self) -> None:
        """Forgets all turns but the system's."""
        self.messages = list(self._start)

    def ask(self, text: str) -> None:
        """Prints the answer to `text` as it comes; Ctrl-C ends it there. Both turns are kept.

        A QuireError is told and `text` is forgotten.
        """
        turns = [*self.messages, {"role": "user", "content": text}]
        said: list[str] = []
        try:
            with (
                contextlib.suppress(KeyboardInterrupt),
                contextlib.closing(self._answers(turns)) as pieces,
            ):
                for piece in pieces:
                    said.append(piece)
                    print(piece, end="", flush=True)
        except QuireError as error:
            print(f"quire: error: {error} /reset starts over.", file=sys.stderr)
            return
        print()
        self.messages = [*turns, {"role": "assistant", "content": "".join(said)}]


def _converse(answers: Answers, system: str | None) -> None:
    conversation = Conversation(answers, system)
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
