"""Batches as Ray gives them become tables, and tables rows."""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from ray.data.block import BlockAccessor

from quire import OptionError
from quire.entrypoints.ray.blocks import as_table, rows

TALK = [{"role": "user", "content": "Hi"}]
READ = {"prompt", "messages", "max_tokens", "stop"}


def numpy_batch(table: pa.Table) -> dict[str, Any]:
    """A table as `map_batches` gives it by default."""
    batch = BlockAccessor.for_block(table).to_batch_format("numpy")
    assert isinstance(batch, dict)
    return batch


TABLE = pa.table(
    {
        "prompt": pa.array(["a", None], pa.string()),
        "messages": pa.array([None, TALK]),
        "max_tokens": pa.array([3, None], pa.int32()),
        "stop": pa.array([["x", "y"], None]),
        "tags": pa.array([[1, 2], [3, 4]]),
        "score": pa.array([0.5, float("nan")]),
        "data": pa.array([b"\xff", None]),
        "day": pa.array([0, 86_400_000_000_000], pa.timestamp("ns")),
    }
)


def test_a_table_is_taken_as_it_is() -> None:
    assert as_table(TABLE, READ) is TABLE


def test_arrays_become_what_they_were() -> None:
    found = as_table(numpy_batch(TABLE), READ)
    assert found.column_names == TABLE.column_names
    for name in ("prompt", "messages", "stop", "tags", "data", "day"):
        assert found[name].to_pylist() == TABLE[name].to_pylist()
        assert found[name].type == TABLE[name].type
    assert found["max_tokens"].to_pylist() == [3.0, None]
    assert np.isnan(found["score"].to_pylist()[1])


def test_what_arrow_does_not_know_is_left_to_ray() -> None:
    pictures = np.zeros((2, 4, 4, 3), np.uint8)
    odd = np.empty(2, object)
    odd[:] = [TABLE, {1, 2}]
    found = as_table({"prompt": np.array(["a", "b"]), "picture": pictures, "odd": odd}, READ)
    back = numpy_batch(found)
    np.testing.assert_array_equal(back["picture"], pictures)
    assert back["odd"][1] == {1, 2}


def test_rows_have_what_is_read_in_types_of_python() -> None:
    ids = np.array([[1, 2], [3, 4]])
    for batch in ({"prompt": ids}, pa.table({"prompt": as_table({"x": ids}, ())["x"]})):
        found = [row.fields for row in rows(as_table(batch, READ), READ)]
        assert found == [{"prompt": [1, 2]}, {"prompt": [3, 4]}]
        assert all(type(one) is int for row in found for one in row["prompt"])
    found = [row.fields for row in rows(as_table(numpy_batch(TABLE), READ), READ)]
    assert found == [
        {"prompt": "a", "messages": None, "max_tokens": 3.0, "stop": ["x", "y"]},
        {"prompt": None, "messages": TALK, "max_tokens": None, "stop": None},
    ]


def test_sizes_are_about_those_of_the_table() -> None:
    table = pa.table({"prompt": ["x" * 1000] * 4})
    assert [row.size // 100 for row in rows(table, READ)] == [10] * 4
    assert rows(table[:0], READ) == []


def test_other_batches_are_refused() -> None:
    with pytest.raises(OptionError, match="type DataFrame. Give batch_format='pyarrow'"):
        as_table(pd.DataFrame({"prompt": ["a"]}), READ)
