"""A batch job as it is asked for, with everything checked that needs no model."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import OptionError, SamplingParams
from ..extras import need
from .asking import ANSWERS_DEPEND_ON, Asking, as_json, make_asking
from .columns import check_names
from .jsonl import JsonlSource
from .options import OF_OPENAI_LINES, OF_ROWS, SERVED, BatchOptions
from .resuming import Files, input_settings
from .rows import Source

if TYPE_CHECKING:
    from ... import AsyncEngine

LINES = (".jsonl", ".ndjson")
PARQUET = (".parquet",)
SERVER = ("fastapi", "prometheus_client", "pydantic")
"""What OpenAI lines need."""


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """A job that can begin."""

    source: Source
    files: Files
    asking: Asking
    settings: Mapping[str, Any]
    """What must not change while the job runs, or until it goes on."""
    openai: bool
    """Whether rows are OpenAI lines."""

    @property
    def to_lines(self) -> bool:
        """Whether the output is of lines; else it is Parquet."""
        return self.files.output == self.files.journal


def make_plan(
    source: str | Path,
    output: str | Path,
    model: str | Path | None,
    engine: "AsyncEngine | None",
    sampling: SamplingParams | Mapping[str, Any] | None,
    options: Mapping[str, Any],
) -> Plan:
    """Reads what a job is asked for, as `run` has it. Raises OptionError."""
    source, output = Path(source), Path(output)
    asking = make_asking(model, engine, sampling, options)
    own, known = asking.options, asking.known
    lines = _kind(output) in LINES
    opened, settings = _open(source, output)
    openai = _kind(source) in LINES and {"custom_id", "body"} <= set(opened.names)
    _check_form(source, output, own, openai=openai)
    if not openai:
        check_names(opened.names, own, complete=not isinstance(opened, JsonlSource))
    settings["model"] = asking.model_name
    settings |= _named("sampling", asking.sampling)
    settings |= _named("option", {name: getattr(own, name) for name in (*OF_ROWS, *SERVED)})
    settings |= _named("engine", {name: getattr(known, name) for name in ANSWERS_DEPEND_ON})
    return Plan(
        source=opened,
        files=Files.of(output, lines=lines),
        asking=asking,
        settings=settings,
        openai=openai,
    )


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in (*LINES, *PARQUET):
        raise OptionError(f"{path} must end in one of {', '.join((*LINES, *PARQUET))}.")
    if suffix in PARQUET:
        need(("pyarrow",), f"{path} needs", "parquet")
    return suffix


def _open(source: Path, output: Path) -> tuple[Source, dict[str, Any]]:
    """The input, and what tells it from others."""
    if source.resolve() == output.resolve():
        raise OptionError(f"{source} is the input and the output. Give another output.")
    try:
        settings = input_settings(source)
    except OSError as error:
        raise OptionError(f"{source} cannot be read: {error}.") from error
    if _kind(source) in LINES:
        return JsonlSource(source), settings
    from .parquet import ParquetSource

    return ParquetSource(source), settings


def _check_form(source: Path, output: Path, options: BatchOptions, *, openai: bool) -> None:
    idle, has = (OF_ROWS, "") if openai else (OF_OPENAI_LINES, "no ")
    for name in idle:
        if getattr(options, name) != getattr(BatchOptions(), name):
            raise OptionError(
                f"{name} has no effect here: {source} has {has}OpenAI lines. Leave it out."
            )
    if openai and _kind(output) in PARQUET:
        raise OptionError(
            f"{source} has OpenAI lines, which {output} cannot hold. Give an output that ends in "
            f"{LINES[0]}."
        )
    if openai:
        need(SERVER, f"{source} has OpenAI lines, which need", "server")


def _named(kind: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{kind} {name}": value for name, value in as_json(values).items()}
