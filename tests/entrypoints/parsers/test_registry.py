from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.entrypoints.parsers.samples.sample import message

from quire import OptionError
from quire.entrypoints.parsers import (
    REASONING_PARSERS,
    TOOL_PARSERS,
    load_plugin,
    reasoning_parser,
    register_tool_parser,
    tool_parser,
)

PLUGIN = """
from quire.entrypoints.parsers import (
    Arguments, CallStart, Content, Reasoning, Parser, ToolParser, register_reasoning_parser,
    register_tool_parser,
)

@register_tool_parser("shout")
class Shout(ToolParser):
    def feed(self, text):
        return [CallStart(0, text), Arguments(0, "{}"), Content(str(len(self.tools)))]

    def finish(self):
        return []

@register_reasoning_parser("dream")
class Dream(Parser):
    def feed(self, text):
        return [Reasoning(text)]

    def finish(self):
        return []
"""


@pytest.fixture(autouse=True)
def same_registries_after() -> Iterator[None]:
    """Puts back what a test adds."""
    tools, reasoning = set(TOOL_PARSERS), set(REASONING_PARSERS)
    yield
    for name in set(TOOL_PARSERS) - tools:
        del TOOL_PARSERS[name]
    for name in set(REASONING_PARSERS) - reasoning:
        del REASONING_PARSERS[name]


def write(folder: Path, text: str) -> Path:
    path = folder / "plugin.py"
    path.write_text(text)
    return path


def test_an_unknown_name_is_an_error_that_lists_what_there_is() -> None:
    with pytest.raises(OptionError, match="no tool parser 'lama3_json'.* mean 'llama3_json'.*herm"):
        tool_parser("lama3_json")
    with pytest.raises(OptionError, match="no reasoning parser 'x'. Known: deepseek_r1, qwen3;"):
        reasoning_parser("x")


def test_a_plugin_adds_parsers(tmp_path: Path) -> None:
    load_plugin(write(tmp_path, PLUGIN))
    result = message(tool_parser("shout")([{}, {}]), ["hey"])
    assert (result.content, result.calls[0].name) == ("2", "hey")
    assert message(reasoning_parser("dream")(), ["zzz"]).reasoning == "zzz"


def test_a_taken_name_is_an_error() -> None:
    with pytest.raises(OptionError, match="a tool parser 'hermes' already"):
        register_tool_parser("hermes")(TOOL_PARSERS["mistral"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "registers no parser. Decorate"),
        ("1 / 0", "cannot be loaded: ZeroDivisionError: division by zero"),
        ("def", "cannot be loaded: SyntaxError"),
    ],
)
def test_a_bad_plugin_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(OptionError, match=f"plugin .*plugin.py {message}"):
        load_plugin(write(tmp_path, text))


def test_a_plugin_must_be_a_python_file(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="FileNotFoundError"):
        load_plugin(tmp_path / "none.py")
    with pytest.raises(OptionError, match="must end in .py"):
        load_plugin(tmp_path / "plugin.txt")
