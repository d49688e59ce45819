"""Data sets answered as `quire batch` answers files: one engine an actor."""

import asyncio
import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from ... import AsyncEngine, OptionError, SamplingParams
from ..batch.answering import answer, complete, limits
from ..batch.asking import make_asking
from ..batch.columns import Columns, check_names, read_columns, result_columns
from ..batch.options import OF_OPENAI_LINES, BatchOptions
from ..batch.rows import Answer, Row
from ..batch.tables import result_schema, with_results
from .blocks import as_table, rows
from .gpus import check_gpus


class Predictor:
    """Answers batches of rows; a class for `ray.data.Dataset.map_batches`.

    The columns are those of `quire.batch.run` for a table: those of the input are kept, in their
    order, and those of the answer added; a row that cannot be answered is a row with an error.
    Where rows have a column `n`, the columns of the answer are lists.

    Batches may overlap: the engine is then kept full from one to the next.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        sampling_params: SamplingParams | Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """Loads a model, and the adapters that rows may name.

        Args:
            model: as for `Engine`.
            sampling_params: for rows that do not set their own; what a dict leaves out comes from
                the model's generation config.
            **options: `prompt_column`, `result_prefix`, `lora_modules`, and the fields of
                `EngineOptions`.

        Raises:
            OptionError: also where Ray gave the actor other GPUs than the engine computes on.
            AdapterError and what `Engine` raises.
        """
        self._stack = contextlib.ExitStack()
        asking = make_asking(model, None, sampling_params, options)
        _check_form(asking.options)
        check_gpus(asking.engine_options, "map_batches")
        loading = {"use_tqdm_on_load": sys.stderr.isatty(), **asking.engine_options}
        engine = self._stack.enter_context(contextlib.closing(AsyncEngine(asking.model, **loading)))
        opening = Columns.open(
            engine, asking.options, asking.sampling, asking.server.adapters, keep=False
        )
        self._form = complete(opening)
        self._options = asking.options
        self._read = read_columns(asking.options)
        self._several = asking.sampling.get("n", 1) > 1
        self._room = asyncio.Semaphore(limits(engine).asked)

    async def __call__(self, batch: Any) -> pa.Table:
        """Answers a batch: NumPy arrays by column, or a table of Arrow. On one event loop.

        Raises:
            OptionError: for a batch of another type, or without a column to answer, or with one
                where answers would go.
            EngineClosedError: the engine died.
        """
        table = as_table(batch, self._read)
        if not table.num_columns:
            return table  # what Ray makes of no rows at all
        names = table.column_names
        check_names(names, self._options, complete=True)
        answers = await asyncio.gather(*map(self._answer, rows(table, self._read)))
        added = result_schema(result_columns(self._options), several=self._several or "n" in names)
        return with_results(table, [one.line for one in answers], added)

    def close(self) -> None:
        """Closes the engine."""
        self._stack.close()

    def __del__(self) -> None:
        """Ray drops the object when the actor ends."""
        self.close()

    async def _answer(self, row: Row) -> Answer:
        async with self._room:
            return await answer(self._form, row)


def _check_form(options: BatchOptions) -> None:
    for name in ("overwrite", *OF_OPENAI_LINES):
        if getattr(options, name) != getattr(BatchOptions(), name):
            raise OptionError(f"{name} has no effect on a data set. Leave it out.")
