"""A job killed with SIGKILL, again and again, ends with the output of one that nobody killed."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from .conftest import FRANCE, read_lines, write_lines

ROWS = 400
KILLS = 20
PROGRAM = "import sys; from quire.entrypoints.cli import main; sys.exit(main())"
FLAGS = ["--temperature", "0", "--dtype", "float32", "--max-num-seqs", "4", "--enforce-eager"]
STARTED_WITHIN = 120.0


def start(source: Path, output: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", PROGRAM, "batch", str(source), str(output), *FLAGS]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(source: Path, output: Path) -> str:
    """What a run says that may end."""
    with start(source, output) as process:
        out, error = process.communicate(timeout=STARTED_WITHIN)
    assert process.returncode == 0, error
    return out


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def kill(source: Path, output: Path, journal: Path, choose: random.Random) -> None:
    """Starts a run and kills it some bytes later, or earlier, perhaps while it still starts."""
    target = size(journal) + choose.randint(1, 3000)
    end = time.monotonic() + choose.choice([choose.uniform(0, 3), STARTED_WITHIN])
    process = start(source, output)
    while size(journal) < target and process.poll() is None and time.monotonic() < end:
        time.sleep(choose.uniform(0, 0.01))
    process.kill()
    _, error = process.communicate()
    assert process.returncode in (-signal.SIGKILL, 0), error


def whole_lines(content: bytes) -> bytes:
    return content[: content.rfind(b"\n") + 1]


def rows() -> list[dict[str, Any]]:
    """Of very different lengths, so that many wait for one before them; some are errors."""
    choose = random.Random(1)
    made: list[dict[str, Any]] = []
    for number in range(ROWS):
        tokens = choose.choice([1, 2, 3, 5, 40])
        one = {"id": number, "prompt": f"{FRANCE} {number}", "max_tokens": tokens}
        made.append(one if number % 50 else {**one, "prompt": None})
    return made


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kills"), [("y.jsonl", KILLS), ("y.parquet", 5)])
def test_every_row_is_there_once_and_in_order(tmp_path: Path, name: str, kills: int) -> None:
    source, output = write_lines(tmp_path / "x.jsonl", *rows()), tmp_path / name
    journal = output if name == "y.jsonl" else tmp_path / f"{name}.results.jsonl"
    state, choose = tmp_path / f"{name}.state.json", random.Random()
    left = [b""]
    for _ in range(kills):
        kill(source, output, journal, choose)
        if size(output) and not state.exists():
            break  # it was killed when all was done
        left.append(journal.read_bytes() if journal.exists() else b"")
        assert left[-1].startswith(whole_lines(left[-2])), "what was written stays as it is"
    else:
        assert f"{ROWS} rows" in finish(source, output)
    assert len(set(left)) > kills // 4, "it was killed while it answered"
    assert finish(source, tmp_path / f"whole{output.suffix}")
    if name == "y.jsonl":
        assert output.read_bytes().startswith(whole_lines(left[-1]))
        assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
        assert [one["id"] for one in read_lines(output)] == list(range(ROWS))
    else:
        assert pq.read_table(output).equals(pq.read_table(tmp_path / "whole.parquet"))
    left_over = {path.name for path in tmp_path.iterdir()}
    assert left_over == {"x.jsonl", name, f"whole{output.suffix}"}
