"""The file that answers go to: whole lines, one writer, nothing torn."""

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from quire import OptionError
from quire.entrypoints.batch.journal import Journal

LINES = [b'{"a": 1, "error": null}\n', b'{"a": 2, "error": "no"}\n', b'{"a": 3, "error": null}\n']


def failed(fields: dict[str, Any]) -> bool:
    return fields["error"] is not None


def test_what_is_appended_is_there_at_once(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    with Journal(path) as journal:
        journal.append(LINES[:2])
        assert path.read_bytes() == b"".join(LINES[:2])
        journal.append(LINES[2:])
        assert journal.rows == 3
    assert path.read_bytes() == b"".join(LINES)


@pytest.mark.parametrize("size", range(len(b"".join(LINES)) + 1))
def test_a_torn_line_is_cut_off(tmp_path: Path, size: int) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"".join(LINES)[:size])
    whole = path.read_bytes().count(b"\n")
    with Journal(path) as journal:
        assert journal.recover(failed) == (whole > 1)
        assert journal.rows == whole
        journal.append(LINES[whole:])
    assert path.read_bytes() == b"".join(LINES)


@pytest.mark.parametrize("garbage", [b"\0\0\0\n", b"{broken\n", b"5\n", b"\xff\n"])
def test_a_line_that_is_none_is_cut_off_with_all_behind_it(tmp_path: Path, garbage: bytes) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(LINES[0] + garbage + LINES[2])
    with Journal(path) as journal:
        assert journal.recover(failed) == 0
        assert journal.rows == 1
    assert path.read_bytes() == LINES[0]


def test_clearing_forgets_all_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    with Journal(path) as journal:
        journal.append(LINES)
        journal.clear()
        journal.append(LINES[:1])
        assert journal.rows == 1
    assert path.read_bytes() == LINES[0]


def test_there_is_one_writer_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    program = "import sys; from pathlib import Path; from quire.entrypoints.batch.journal import *"
    program += "\nwith Journal(Path(sys.argv[1])): print('open', flush=True); sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    command = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(command, **pipes) as other:  # pyright: ignore[reportArgumentType, reportCallIssue]
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(OptionError, match="another process is writing .*x.jsonl"):
            Journal(path)
        other.kill()
    with Journal(path) as journal:
        journal.append(LINES)


def test_a_file_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="cannot be written: .*No such file"):
        Journal(tmp_path / "nowhere" / "x.jsonl")


def test_an_empty_file_of_a_job_that_did_not_begin_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.touch()
    with pytest.raises(ZeroDivisionError), Journal(path):
        _ = 1 / 0
    assert path.exists(), "it was there before"
    path.unlink()
    with pytest.raises(ZeroDivisionError), Journal(path):
        _ = 1 / 0
    assert not path.exists()
    path.write_bytes(LINES[0])
    with pytest.raises(ZeroDivisionError), Journal(path):
        _ = 1 / 0
    assert path.read_bytes() == LINES[0]


def test_a_full_disk_is_told_and_the_lines_before_stay(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    with Journal(path) as journal:
        journal.append(LINES[:1])
    small = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, small[1]))
    try:
        with pytest.raises(OSError, match="File too large"), Journal(path) as journal:
            journal.append(LINES[1:])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, small)
    with Journal(path) as journal:
        journal.recover(failed)
        assert journal.rows == 1
    assert path.read_bytes() == LINES[0]
