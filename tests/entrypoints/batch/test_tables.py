"""Parquet as rows, and rows with their results as Parquet."""

import datetime
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from quire import OptionError
from quire.entrypoints.batch.columns import RESULTS, result_columns
from quire.entrypoints.batch.jsonl import JsonlSource
from quire.entrypoints.batch.options import BatchOptions
from quire.entrypoints.batch.parquet import ParquetSource
from quire.entrypoints.batch.rows import ROWS
from quire.entrypoints.batch.tables import write_parquet

from .conftest import write_lines

NAMES = result_columns(BatchOptions())


def table(count: int) -> pa.Table:
    """Columns of types that JSON does not have."""
    times = [datetime.datetime(2024, 1, 1) + datetime.timedelta(seconds=i) for i in range(count)]
    return pa.table(
        {
            "number": pa.array(range(count), pa.uint8() if count < 256 else pa.uint16()),
            "prompt": [f"prompt {i}" for i in range(count)],
            "bytes": [bytes([i % 256]) for i in range(count)],
            "time": pa.array(times, pa.timestamp("ns", "UTC")),
            "kind": pa.array([f"k{i % 3}" for i in range(count)]).dictionary_encode(),
        },
    ).replace_schema_metadata({"made by": "a test"})


def results(path: Path, count: int, **changes: Any) -> Path:
    """Lines with a result for each of so many rows, which are told by their number."""
    one = {"finish_reason": "stop", "prompt_tokens": 3, "completion_tokens": 1, "error": None}
    return write_lines(path, *({"text": f"t{i}", **one, **changes} for i in range(count)))


def written(tmp_path: Path, source: Any, count: int, **changes: Any) -> pa.Table:
    """The table of a source of so many rows, with results."""
    output = tmp_path / "out.parquet"
    write_parquet(source, results(tmp_path / "r.jsonl", count, **changes), output, NAMES)
    assert {path.suffix for path in tmp_path.glob("out*")} == {".parquet"}
    return pq.read_table(output)


@pytest.mark.parametrize("skip", [0, 1, 99, 100, 101, 250, 999, 1000])
def test_rows_are_read_behind_those_skipped(tmp_path: Path, skip: int) -> None:
    pq.write_table(table(1000), tmp_path / "x.parquet", row_group_size=100)
    source = ParquetSource(tmp_path / "x.parquet")
    blocks = list(source.blocks(skip, {"number", "prompt", "elsewhere"}))
    assert all(0 < len(block) <= ROWS for block in blocks)
    found = [row.fields for block in blocks for row in block]
    assert found == [{"number": i, "prompt": f"prompt {i}"} for i in range(skip, 1000)]
    assert source.count() == 1000


def test_blocks_of_large_rows_have_few_of_them(tmp_path: Path) -> None:
    pictures = pa.table({"picture": [bytes([i]) * 1_000_000 for i in range(12)]})
    pq.write_table(pictures, tmp_path / "x.parquet", use_dictionary=False, compression="none")
    blocks = list(ParquetSource(tmp_path / "x.parquet").blocks(0))
    assert max(map(len, blocks)) == 4
    assert sum(row.size for block in blocks for row in block) >= 12_000_000


def test_nanoseconds_become_text(tmp_path: Path) -> None:
    values = {
        "a": pa.array([1, None], pa.timestamp("ns")),
        "b": pa.array([1, None], pa.time64("ns")),
    }
    pq.write_table(pa.table(values), tmp_path / "x.parquet")
    ((first, second),) = ParquetSource(tmp_path / "x.parquet").blocks(0)
    assert first.fields == {"a": "1970-01-01 00:00:00.000000001", "b": "00:00:00.000000001"}
    assert second.fields == {"a": None, "b": None}


def test_a_file_that_is_no_parquet_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_text("text")
    with pytest.raises(OptionError, match=r"x.parquet cannot be read as Parquet: "):
        ParquetSource(tmp_path / "x.parquet")


def test_columns_of_a_table_keep_their_types(tmp_path: Path) -> None:
    pq.write_table(table(1000), tmp_path / "x.parquet", row_group_size=300)
    found = written(tmp_path, ParquetSource(tmp_path / "x.parquet"), 1000)
    assert found.select(table(1).column_names).equals(table(1000))
    assert found.schema.metadata[b"made by"] == b"a test"
    assert found.column_names[-len(RESULTS) :] == list(RESULTS)
    assert found["text"].to_pylist() == [f"t{i}" for i in range(1000)]
    assert found["prompt_tokens"].type == pa.int64()
    assert found["error"].type == pa.string()
    assert pq.ParquetFile(tmp_path / "out.parquet").num_row_groups == 1


def test_several_outputs_make_lists_of_all(tmp_path: Path) -> None:
    several = {"text": ["a", "b"], "completion_tokens": [1, 2], "finish_reason": ["stop"] * 2}
    lines = [{**dict.fromkeys(RESULTS), "text": "c", "completion_tokens": 3}]
    lines += [{**dict.fromkeys(RESULTS), **several, "prompt_tokens": 1}]
    lines += [{**dict.fromkeys(RESULTS), "error": "no"}]
    source = JsonlSource(write_lines(tmp_path / "x.jsonl", {"a": 1}, {"a": 2}, {"a": 3}))
    output = tmp_path / "out.parquet"
    write_parquet(source, write_lines(tmp_path / "r.jsonl", *lines), output, NAMES)
    found = pq.read_table(output)
    assert found["text"].to_pylist() == [["c"], ["a", "b"], None]
    assert found["completion_tokens"].to_pylist() == [[3], [1, 2], None]
    assert found["prompt_tokens"].to_pylist() == [None, 1, None]
    assert found["error"].to_pylist() == [None, None, "no"]


BIG = 2**60 + 1
COLUMNS: dict[str, tuple[list[Any], pa.DataType, list[Any]]] = {
    "whole": ([1, 2, 3], pa.int64(), [1, 2, 3]),
    "grows": ([1, 2.5, None], pa.float64(), [1.0, 2.5, None]),
    "null": ([None, None, None], pa.null(), [None, None, None]),
    "late": ([None, None, "x"], pa.string(), [None, None, "x"]),
    "lists": ([[1], [], None], pa.list_(pa.int64()), [[1], [], None]),
    "mixed": ([1, "a", None], pa.string(), ["1", '"a"', None]),
    "huge": ([10**30, 1, None], pa.string(), [str(10**30), "1", None]),
    "halves": (["\ud83d", "b", None], pa.string(), ['"\\ud83d"', '"b"', None]),
    "shapes": ([{"a": 1}, [1], None], pa.string(), ['{"a": 1}', "[1]", None]),
    "fits_no_double": ([BIG, 0.5, None], pa.string(), [str(BIG), "0.5", None]),
}


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("apart", [False, True], ids=["together", "in blocks of their own"])
def test_lines_get_a_type_for_each_column(tmp_path: Path, name: str, apart: bool) -> None:
    values, kind, expected = COLUMNS[name]
    between = ROWS if apart else 0
    lines: list[object] = []
    for value in values:
        lines += [{name: value, "text": "hidden by the result"}, *[{}] * between]
    source = JsonlSource(write_lines(tmp_path / "x.jsonl", *lines))
    found = written(tmp_path, source, len(lines))
    assert found.column_names == [name, *RESULTS]
    assert found[name].type == kind
    assert found[name].to_pylist()[:: between + 1] == expected
    assert found["text"].to_pylist() == [f"t{i}" for i in range(len(lines))]


def test_objects_get_the_fields_of_all(tmp_path: Path) -> None:
    lines = [{"a": {"x": 1}}, *[{}] * ROWS, {"a": {"y": "z"}}]
    source = JsonlSource(write_lines(tmp_path / "x.jsonl", *lines))
    values = written(tmp_path, source, len(lines))["a"].to_pylist()
    loaded = [json.loads(one) if isinstance(one, str) else one for one in (values[0], values[-1])]
    assert [{k: v for k, v in one.items() if v is not None} for one in loaded] == [
        {"x": 1},
        {"y": "z"},
    ]


def test_no_rows_make_an_empty_table(tmp_path: Path) -> None:
    found = written(tmp_path, JsonlSource(write_lines(tmp_path / "x.jsonl")), 0)
    assert (found.num_rows, found.column_names) == (0, list(RESULTS))
    pq.write_table(table(0), tmp_path / "x.parquet")
    found = written(tmp_path, ParquetSource(tmp_path / "x.parquet"), 0)
    assert (found.num_rows, found.column_names[:2]) == (0, ["number", "prompt"])


@pytest.mark.parametrize("count", [0, 2, 4])
def test_another_number_of_rows_is_an_error(tmp_path: Path, count: int) -> None:
    source = JsonlSource(write_lines(tmp_path / "x.jsonl", {"a": 1}, {"a": 2}, {"a": 3}))
    with pytest.raises(OptionError, match="the input has changed while the job ran"):
        written(tmp_path, source, count)
    assert not (tmp_path / "out.parquet").exists()
