"""Batches of a data set, as tables of Arrow and as rows."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from ray.data.block import BlockAccessor

from ... import OptionError
from ..batch.rows import Row


def as_table(batch: Any, read: Collection[str]) -> pa.Table:
    """A batch as `map_batches` gives it, NumPy arrays by column or a table of Arrow.

    Ray's arrays have NaN where the data set has no number. In the columns `read` it is null again.

    Raises OptionError for a batch of another kind.
    """
    if isinstance(batch, pa.Table):
        return batch
    if isinstance(batch, Mapping):
        return pa.table({name: _column(name, batch[name], name in read) for name in batch})
    raise OptionError(
        f"a batch is of the type {type(batch).__name__}. Give batch_format='pyarrow' or 'numpy' "
        "in map_batches."
    )


def rows(table: pa.Table, read: Collection[str]) -> list[Row]:
    """The rows of a table, with the columns `read` alone."""
    size = table.nbytes // max(table.num_rows, 1)
    kept = table.select([name for name in table.column_names if name in read])
    return [
        Row({name: _plain(value) for name, value in fields.items()}, size)
        for fields in kept.to_pylist()
    ]


def _column(name: str, values: Any, read: bool) -> Any:
    """As Arrow's own types have it; where these do not do, as Ray's."""
    if read or values.dtype == object:
        given = [_plain(value) if read else _unboxed(value) for value in values]
    else:
        given = values
    try:
        return pa.array(given, from_pandas=read)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return BlockAccessor.batch_to_arrow_block({name: values}).column(name)


def _plain(value: Any) -> Any:
    """The same in Python's own types."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return value


def _unboxed(value: Any) -> Any:
    """The same with lists in place of arrays of objects, which Arrow does not look into."""
    if isinstance(value, np.ndarray) and value.dtype == object:
        return [_unboxed(one) for one in value]
    if isinstance(value, dict):
        return {name: _unboxed(one) for name, one in value.items()}
    return value
