"""The Parquet file of a finished job: the columns of its input, and those of its answers.

Parquet can be read only once its footer is there, and nothing can be added to it then. So while a
job runs its answers are kept as lines of JSON, which are safe as soon as they are written, and in
the end those are joined to the input, block by block, in one file that appears whole. Nothing but
the answers is written twice, all formats resume by the same few lines of code, and columns of a
Parquet input keep their types to the bit.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from ... import OptionError
from .columns import RESULTS
from .journal import replace
from .parquet import ParquetSource
from .rows import Source

Rows = TypeVar("Rows", pa.RecordBatch, pa.Table)
GROUP_ROWS = 2**16
GROUP_BYTES = 64 * 2**20
"""Most rows of a row group, and about the most bytes."""
_TYPES = {"prompt_tokens": pa.int64(), "completion_tokens": pa.int64()}
"""Of results that are no text."""
_ALWAYS_ONE = ("prompt_tokens", "error")
"""Results that are no lists where a row has several outputs."""


class _MixedError(Exception):
    """A column has values that no one type holds."""


def write_parquet(source: Source, results: Path, output: Path, names: Mapping[str, str]) -> None:
    """Writes `output`, whole or not at all.

    Args:
        results: lines of JSON with the columns `names` alone, one for each row of the source.
        names: of the result columns, by what they are in `RESULTS`.

    Raises OptionError where the source has another number of rows.
    """
    temporary = output.with_name(f"{output.name}.tmp")
    added = _result_schema(results, names)
    if isinstance(source, ParquetSource):
        _write(temporary, source.schema, source.batches(), results, added)
    else:
        _write_rows(temporary, source, results, added)
    replace(output, temporary)


def _write_rows(temporary: Path, source: Source, results: Path, added: pa.Schema) -> None:
    """Writes rows of any fields. Columns of mixed values become JSON text."""
    mixed: set[str] = set()
    while True:
        schema = _schema(source, mixed, leave_out=added.names)
        try:
            _write(temporary, schema, _batches(source, schema, mixed), results, added)
            return
        except _MixedError as error:  # as of two values that fit no double, far from each other
            mixed.add(str(error))


def _write(
    path: Path,
    schema: pa.Schema,
    batches: Iterator[pa.RecordBatch],
    results: Path,
    added: pa.Schema,
) -> None:
    for field in added:
        schema = schema.append(field)
    with pq.ParquetWriter(path, schema) as writer, results.open("rb") as lines:
        joined = (_joined(batch, lines, added) for batch in batches)
        for group in _groups(joined):
            writer.write_table(pa.Table.from_batches(group, schema))
        if lines.readline():
            raise _changed()


def _joined(batch: pa.RecordBatch, lines: Iterator[bytes], added: pa.Schema) -> pa.RecordBatch:
    """A batch of the input, with the results of its rows."""
    found = list(itertools.islice(lines, batch.num_rows))
    if len(found) < batch.num_rows:
        raise _changed()
    return with_results(batch, found, added)


def with_results(rows: Rows, lines: Sequence[bytes], added: pa.Schema) -> Rows:
    """Rows with the columns `added`, of which each line has those of a row, as JSON."""
    found = [json.loads(line) for line in lines]
    for field in added:
        values = [one[field.name] for one in found]
        if pa.types.is_list(field.type):
            values = [one if isinstance(one, list | None) else [one] for one in values]
        rows = rows.append_column(field, pa.array(values, field.type))
    return rows


def _changed() -> OptionError:
    return OptionError(
        "the input has changed while the job ran: it has another number of rows than were "
        "answered. Bring it back and run the job again, which will not answer them again."
    )


def _groups(batches: Iterator[pa.RecordBatch]) -> Iterator[list[pa.RecordBatch]]:
    """Batches, as many together as a row group may have."""
    group: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        group.append(batch)
        rows, size = rows + batch.num_rows, size + batch.nbytes
        if rows >= GROUP_ROWS or size >= GROUP_BYTES:
            yield group
            group, rows, size = [], 0, 0
    if group:
        yield group


def _result_schema(results: Path, names: Mapping[str, str]) -> pa.Schema:
    """The types of result columns: lists where any row has several outputs."""
    with results.open("rb") as lines:
        several = any(isinstance(json.loads(line)[names["text"]], list) for line in lines)
    return result_schema(names, several=several)


def result_schema(names: Mapping[str, str], *, several: bool) -> pa.Schema:
    """The types of result columns.

    Args:
        names: theirs, by what they are in `RESULTS`.
        several: rows may have several outputs.
    """
    fields: list[pa.Field] = []
    for result in RESULTS:
        kind = _TYPES.get(result, pa.string())
        listed = several and result not in _ALWAYS_ONE
        fields.append(pa.field(names[result], pa.list_(kind) if listed else kind))
    return pa.schema(fields)


def _schema(source: Source, mixed: set[str], leave_out: Sequence[str]) -> pa.Schema:
    """The types of all columns that rows have; adds to `mixed` those that have none."""
    types: dict[str, pa.DataType] = {}
    for block in source.blocks(0):
        for name in dict.fromkeys(name for row in block for name in row.fields):
            if name in mixed or name in leave_out:
                continue
            values = [row.fields.get(name) for row in block]
            if (kind := _common(types.get(name, pa.null()), values)) is None:
                mixed.add(name)
            types[name] = kind or pa.string()
    return pa.schema([*types.items(), *((name, pa.string()) for name in mixed - types.keys())])


def _common(known: pa.DataType, values: Sequence[Any]) -> pa.DataType | None:
    """A type for values and for those before them; None where there is none."""
    try:
        schemas = [pa.schema([("", kind)]) for kind in (known, pa.array(values).type)]
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return None


def _batches(source: Source, schema: pa.Schema, mixed: set[str]) -> Iterator[pa.RecordBatch]:
    for block in source.blocks(0):
        columns: list[pa.Array] = []
        for field in schema:
            values = [row.fields.get(field.name) for row in block]
            if field.name in mixed:
                values = [None if one is None else json.dumps(one) for one in values]
            columns.append(_array(values, field))
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


def _array(values: Sequence[Any], field: pa.Field) -> pa.Array:
    try:
        return pa.array(values, field.type)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise _MixedError(field.name) from error
