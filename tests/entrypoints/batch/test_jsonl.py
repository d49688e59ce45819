"""Lines of JSON as rows, and back."""

import datetime
import decimal
import json
import math
from pathlib import Path
from typing import Any

import pytest

from quire.entrypoints.batch.jsonl import JsonlSource, encoded
from quire.entrypoints.batch.rows import ROWS, Row

from .conftest import write_lines


def rows_of(path: Path, skip: int = 0) -> list[Row]:
    return [row for block in JsonlSource(path).blocks(skip) for row in block]


def test_rows_are_objects_and_empty_lines_none(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", {"a": 1}, "", " \t", {"b": "\u2028"}, {})
    assert [row.fields for row in rows_of(path)] == [{"a": 1}, {"b": "\u2028"}, {}]
    assert JsonlSource(path).count() == 3
    assert [row.fields for row in rows_of(path, 2)] == [{}]
    assert rows_of(path, 3) == []


def test_a_last_line_needs_no_end(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"a": 1}\r\n{"a": 2}')
    assert [row.fields for row in rows_of(tmp_path / "x.jsonl")] == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{broken", "Line 2 is not JSON: "),
        (b"[1, 2]", "Line 2 is a JSON list. Write one object a line."),
        (b'{"a": "\xff"}', "Line 2 is not JSON: "),
        (b"[" * 200_000, "Line 2 is not JSON: "),
    ],
)
def test_a_bad_line_is_a_row_with_a_problem(tmp_path: Path, line: bytes, problem: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 3}\n')
    first, bad, last = rows_of(path)
    assert (first.problem, last.problem, last.fields) == (None, None, {"a": 3})
    assert bad.problem is not None
    assert bad.problem.startswith(problem)
    assert bad.fields == {}


def test_names_are_those_of_the_first_row_that_can_be_read(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", "{broken", {"a": 1, "b": 2}, {"c": 3})
    assert list(JsonlSource(path).names) == ["a", "b"]
    assert list(JsonlSource(write_lines(tmp_path / "y.jsonl", "nothing")).names) == []


def test_blocks_are_bounded_in_rows_and_in_bytes(tmp_path: Path) -> None:
    short = write_lines(tmp_path / "x.jsonl", *({"a": i} for i in range(2 * ROWS + 1)))
    assert [len(block) for block in JsonlSource(short).blocks(0)] == [ROWS, ROWS, 1]
    long = write_lines(tmp_path / "y.jsonl", *({"a": "x" * 3_000_000} for _ in range(3)))
    assert [len(block) for block in JsonlSource(long).blocks(0)] == [2, 1]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("é\u2028\n", "é\u2028\n"),
        ("half \ud83d", "half \ud83d"),
        (10**30, 10**30),
        ([math.nan, {"x": math.inf}, 1.5], [None, {"x": None}, 1.5]),
        (b"\x00\xff", "AP8="),
        (datetime.date(2024, 1, 2), "2024-01-02"),
        (datetime.datetime(2024, 1, 2, 3, 4, 5, 6), "2024-01-02T03:04:05.000006"),
        (decimal.Decimal("1.50"), "1.50"),
    ],
)
def test_every_value_has_a_place_in_a_line(value: Any, expected: Any) -> None:
    line = encoded({"a": value, "b": 1})
    assert line.endswith(b"}\n")
    assert line.count(b"\n") == 1
    assert json.loads(line.decode()) == {"a": expected, "b": 1}
