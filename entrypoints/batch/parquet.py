"""Parquet files read as rows, or as the batches that they are; needs `quire[parquet]`."""

from collections.abc import Collection, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ... import OptionError
from .rows import BYTES, ROWS, Row


class ParquetSource:
    """A Parquet file, of which a few batches are in memory."""

    def __init__(self, path: Path) -> None:
        """Reads what the file says of itself. Raises OptionError."""
        try:
            self._file = pq.ParquetFile(path)
        except (OSError, pa.ArrowException) as error:
            raise OptionError(f"{path} cannot be read as Parquet: {error}") from error

    @property
    def schema(self) -> pa.Schema:
        """What its batches have."""
        return self._file.schema_arrow

    @property
    def names(self) -> Collection[str]:
        return self.schema.names

    def count(self) -> int:
        return self._file.metadata.num_rows

    def blocks(self, skip: int, names: Collection[str] | None = None) -> Iterator[list[Row]]:
        for batch in self.batches(skip, names):
            size = batch.nbytes // batch.num_rows
            yield [Row(fields, size) for fields in _readable(batch).to_pylist()]

    def batches(
        self, skip: int = 0, names: Collection[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """The rows behind the first `skip`, in batches of at most `ROWS`, none of them empty."""
        columns = None if names is None else [one for one in self.names if one in names]
        for number in range(self._file.num_row_groups):
            rows = self._file.metadata.row_group(number).num_rows
            if skip >= rows:
                skip -= rows
                continue
            most = self._batch_size(number)
            for batch in self._file.iter_batches(most, row_groups=[number], columns=columns):
                dropped, skip = min(skip, batch.num_rows), max(skip - batch.num_rows, 0)
                if dropped < batch.num_rows:
                    yield batch.slice(dropped)

    def _batch_size(self, number: int) -> int:
        """Rows of a row group that have about `BYTES`."""
        group = self._file.metadata.row_group(number)
        return max(1, min(ROWS, BYTES * group.num_rows // max(group.total_byte_size, 1)))


def _readable(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The same with text in place of times that Python's own types are too coarse for."""
    for index, field in enumerate(batch.schema):
        kind = field.type
        if (pa.types.is_timestamp(kind) or pa.types.is_time64(kind)) and kind.unit == "ns":
            batch = batch.set_column(index, field.name, batch.column(index).cast(pa.string()))
    return batch
