"""Rows with a prompt or a conversation: their columns are kept, and those of the answer added."""

import contextlib
import dataclasses
import logging
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self

from ... import LoRARequest, OptionError, PromptError, QuireError, RequestOutputKind
from ...errors import nearest
from ..jobs import SAMPLING, SOURCES, Job, answer, check_source
from ..openai.lora_modules import LoRAModule
from .jsonl import encoded
from .options import BatchOptions
from .rows import Answer, Row

if TYPE_CHECKING:
    from ... import AsyncEngine, RequestOutput

logger = logging.getLogger(__name__)

ADAPTER = "lora"
"""The column that names an adapter."""
RESULTS = ("text", "finish_reason", "prompt_tokens", "completion_tokens", "error")


def source_columns(options: BatchOptions) -> tuple[str, ...]:
    """The columns that may have what is to be answered."""
    return SOURCES if options.prompt_column is None else (options.prompt_column,)


def read_columns(options: BatchOptions) -> frozenset[str]:
    """The columns that asking takes notice of."""
    return frozenset((*source_columns(options), ADAPTER, *SAMPLING))


def result_columns(options: BatchOptions) -> dict[str, str]:
    """The names of added columns, by what they are in `RESULTS`."""
    return {name: options.result_prefix + name for name in RESULTS}


def failed(fields: Mapping[str, Any], options: BatchOptions) -> bool:
    """Whether a line of the output is an error."""
    return fields.get(options.result_prefix + "error") is not None


def check_names(names: Collection[str], options: BatchOptions, *, complete: bool) -> None:
    """Raises OptionError for columns that are missing, or would be lost.

    Args:
        names: of the columns.
        complete: no row has others.
    """
    wanted = source_columns(options)
    if complete and not set(wanted) & set(names):
        raise OptionError(
            f"the input has no column {' or '.join(wanted)}.{nearest(wanted[0], names)} It has "
            f"{', '.join(names)}: name one with --prompt-column."
        )
    taken = [name for name in result_columns(options).values() if name in names]
    if taken:
        raise OptionError(
            f"the input has columns {', '.join(taken)}, where answers would go. Give "
            "--result-prefix, such as answer_."
        )


class Columns:
    """Answers rows of columns."""

    def __init__(
        self,
        engine: "AsyncEngine",
        options: BatchOptions,
        sampling: Mapping[str, Any],
        adapters: Mapping[str, LoRARequest],
        *,
        keep: bool,
    ) -> None:
        """Those of `open`, with adapters that are loaded."""
        self._engine = engine
        self._column = options.prompt_column
        self._names = result_columns(options)
        self._adapters = adapters
        self._keep = keep
        self._defaults = dataclasses.replace(
            engine.get_default_sampling_params(),
            **sampling,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    @classmethod
    async def open(
        cls,
        engine: "AsyncEngine",
        options: BatchOptions,
        sampling: Mapping[str, Any],
        modules: Iterable[LoRAModule],
        *,
        keep: bool,
    ) -> Self:
        """Loads the adapters. Raises AdapterError or OptionError.

        Args:
            sampling: for rows that do not set their own.
            keep: writes the columns of rows, too.
        """
        adapters = {
            one.name: LoRARequest(one.name, number, one.path, one.base_model_name)
            for number, one in enumerate(modules, 1)
        }
        for adapter in adapters.values():
            await engine.add_lora(adapter)
        return cls(engine, options, sampling, adapters, keep=keep)

    async def answer(self, row: Row) -> Answer:
        """Raises QuireError, or what else goes wrong."""
        job = self._job(row.fields)
        params = dataclasses.replace(self._defaults, **job.sampling)
        adapter = self._adapter(row.fields.get(ADAPTER))
        ask = self._engine.chat if job.is_chat else self._engine.generate
        output = await _last(ask(job.source, params, lora_request=adapter))
        return Answer(
            self._line(row.fields, answer(output)),
            failed=False,
            prompt_tokens=len(output.prompt_token_ids),
            completion_tokens=sum(len(one.token_ids) for one in output.outputs),
        )

    def refusal(self, row: Row, error: Exception) -> Answer:
        told = row.problem or str(error)
        if row.problem is None and not isinstance(error, QuireError):
            logger.error("a row failed", exc_info=error)
            told = f"{type(error).__name__}: {error}"
        try:
            line = self._line(row.fields, {"error": told})
        except RecursionError:  # what is nested too deeply to be written is left out
            line = self._line({}, {"error": told})
        return Answer(line, failed=True)

    def _line(self, fields: Mapping[str, Any], found: Mapping[str, Any]) -> bytes:
        added = {name: found.get(what) for what, name in self._names.items()}
        return encoded({**fields, **added} if self._keep else added)

    def _job(self, fields: Mapping[str, Any]) -> Job:
        line = {**self._source(fields), **_sampling(fields)}
        check_source(line)
        return Job(line)

    def _source(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """What to answer, as a job has it."""
        if self._column is not None:
            if (prompt := fields.get(self._column)) is None:
                hint = "" if self._column in fields else nearest(self._column, fields)
                raise PromptError(f"The row has nothing as {self._column!r}.{hint}")
            return {"prompt": prompt}
        given = {name: fields[name] for name in SOURCES if fields.get(name) is not None}
        if len(given) != 1:
            raise PromptError("The row needs one of prompt and messages, and not both.")
        if isinstance(given.get("messages"), list):
            given["messages"] = [_without_nulls(message) for message in given["messages"]]
        return given

    def _adapter(self, name: Any) -> LoRARequest | None:
        if name is None:
            return None
        if not isinstance(name, str) or name not in self._adapters:
            known = ", ".join(self._adapters) or "none: name some with --lora-modules"
            raise OptionError(f"{ADAPTER}={name!r} names no adapter. There are {known}.")
        return self._adapters[name]


def _sampling(fields: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: fields[name] for name in SAMPLING if fields.get(name) is not None}
    # a column of whole numbers and nulls may come as floats
    return {
        name: int(value) if isinstance(value, float) and value.is_integer() else value
        for name, value in given.items()
    }


def _without_nulls(message: Any) -> Any:
    """A message as it was before it became a row of a table, where all have all fields."""
    if not isinstance(message, dict):
        return message
    content = message.get("content")
    if isinstance(content, list):
        content = [_given(part) for part in content]
    return _given(message) | {"content": content}


def _given(part: Any) -> Any:
    if not isinstance(part, dict):
        return part
    return {name: value for name, value in part.items() if value is not None}


async def _last(outputs: "AsyncGenerator[RequestOutput, None]") -> "RequestOutput":
    async with contextlib.aclosing(outputs):
        return await anext(outputs)
