"""The page on batch jobs: its files are answered by its commands as it says."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from quire.entrypoints.batch.columns import RESULTS
from quire.entrypoints.batch.options import BatchOptions
from quire.entrypoints.batch.resuming import Files
from quire.entrypoints.cli import main

from .conftest import read_lines

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "batch_jobs.md").read_text()
LINES = dict(re.findall(r"`(\w+\.jsonl)`[^`]*:\n\n```jsonl\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = re.findall(r"```sh\n(quire batch .*?)\n```", PAGE, re.DOTALL)


def run(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The output of a command of the page, in a folder with the files that it shows."""
    monkeypatch.chdir(folder)
    (folder / "examples").symlink_to(ROOT / "examples")
    argv = shlex.split(command)[1:]
    (folder / argv[1]).write_text(LINES[argv[1]])
    assert main([*argv, "--enforce-eager"]) == 0
    return read_lines(folder / argv[2])


def test_all_commands_are_tested() -> None:
    inputs = [shlex.split(command)[2] for command in COMMANDS]
    assert inputs == ["questions.jsonl", "tables.jsonl", "requests.jsonl"]
    assert {*inputs, "answers.jsonl"} == LINES.keys()


def test_rows_are_answered_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(COMMANDS[0], tmp_path, monkeypatch)
    assert found == [json.loads(line) for line in LINES["answers.jsonl"].splitlines()]


def test_adapters_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sql, plain = run(COMMANDS[1], tmp_path, monkeypatch)
    assert "SELECT" in sql["text"]
    assert "Paris" in plain["text"]


def test_openai_lines_are_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chat, completion = run(COMMANDS[2], tmp_path, monkeypatch)
    assert [one["response"]["status_code"] for one in (chat, completion)] == [200, 200]
    assert chat["response"]["body"]["model"] == "gpt-4o-mini"
    assert "Rome" in chat["response"]["body"]["choices"][0]["message"]["content"]


def test_names_are_those_of_the_code() -> None:
    for name in RESULTS:
        assert f"`{name}`" in PAGE
    for name in BatchOptions.__dataclass_fields__:
        assert f"`{name}`" in PAGE or f"`--{name.replace('_', '-')}" in PAGE
    files = Files.of(Path("OUTPUT"), lines=False)
    assert f"`{files.state}`" in PAGE
    assert f"`{files.journal}`" in PAGE
