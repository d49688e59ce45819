"""Parsers by the names that the command line knows, and those that a plugin adds."""

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ... import OptionError
from ...errors import nearest
from .deepseek_v3 import DeepSeekV3Parser
from .events import Parser, Tool, ToolParser
from .granite import GraniteParser
from .hermes import HermesParser
from .llama3_json import Llama3JsonParser
from .mistral import MistralParser
from .phi4_mini_json import Phi4MiniJsonParser
from .pythonic import Llama4PythonicParser, PythonicParser
from .qwen3_coder import Qwen3CoderParser
from .reasoning import DeepSeekR1Parser, Qwen3ReasoningParser

MakeToolParser = Callable[[Sequence[Tool]], ToolParser]
MakeReasoningParser = Callable[[], Parser]

TOOL_PARSERS: dict[str, MakeToolParser] = {
    "deepseek_v3": DeepSeekV3Parser,
    "granite": GraniteParser,
    "hermes": HermesParser,
    "llama3_json": Llama3JsonParser,
    "llama4_json": Llama3JsonParser,
    "llama4_pythonic": Llama4PythonicParser,
    "mistral": MistralParser,
    "phi4_mini_json": Phi4MiniJsonParser,
    "pythonic": PythonicParser,
    "qwen3_coder": Qwen3CoderParser,
    "qwen3_xml": Qwen3CoderParser,
}
"""What makes a parser of calls from a request's tools. Plugins add to it."""

REASONING_PARSERS: dict[str, MakeReasoningParser] = {
    "deepseek_r1": DeepSeekR1Parser,
    "qwen3": Qwen3ReasoningParser,
}
"""What makes a parser of reasoning. Plugins add to it."""

Made = TypeVar("Made", bound=Callable[..., Parser])
MadeToolParser = TypeVar("MadeToolParser", bound=MakeToolParser)
MadeReasoningParser = TypeVar("MadeReasoningParser", bound=MakeReasoningParser)


def tool_parser(name: str) -> MakeToolParser:
    """What makes the tool parser called `name`.

    Raises:
        OptionError: naming the parsers there are, if that is not one.
    """
    return _find("tool", name, TOOL_PARSERS)


def reasoning_parser(name: str) -> MakeReasoningParser:
    """What makes the reasoning parser called `name`; raises as `tool_parser` does."""
    return _find("reasoning", name, REASONING_PARSERS)


def _find(kind: str, name: str, known: Mapping[str, Made]) -> Made:
    if name not in known:
        raise OptionError(
            f"There is no {kind} parser {name!r}.{nearest(name, known)} "
            f"Known: {', '.join(sorted(known))}; a plugin can register others."
        )
    return known[name]


def register_tool_parser(name: str) -> Callable[[MadeToolParser], MadeToolParser]:
    """Decorates a `ToolParser` of a plugin: makes it known as `name`.

    Raises:
        OptionError: if another parser has the name.
    """
    return lambda made: _register("tool", name, made, TOOL_PARSERS)


def register_reasoning_parser(name: str) -> Callable[[MadeReasoningParser], MadeReasoningParser]:
    """Decorates a `Parser` that gives out `Reasoning`; otherwise as `register_tool_parser`."""
    return lambda made: _register("reasoning", name, made, REASONING_PARSERS)


def _register(kind: str, name: str, made: Made, known: dict[str, Any]) -> Made:
    if name in known:
        raise OptionError(f"There is a {kind} parser {name!r} already; choose another name.")
    known[name] = made
    return made


def load_plugin(path: str | Path) -> None:
    """Runs a Python file, with all rights of this process, that registers parsers.

    Raises:
        OptionError: if it cannot be read, fails, or registers nothing.
    """
    path = Path(path)
    before = len(TOOL_PARSERS) + len(REASONING_PARSERS)
    try:
        _run(path)
    except Exception as error:
        raise OptionError(
            f"The parser plugin {path} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    if len(TOOL_PARSERS) + len(REASONING_PARSERS) == before:
        raise OptionError(
            f"The parser plugin {path} registers no parser. "
            'Decorate a class in it with @register_tool_parser("name").'
        )


def _run(path: Path) -> None:
    name = f"quire_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look their module up
    spec.loader.exec_module(module)
