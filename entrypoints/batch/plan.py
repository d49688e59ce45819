"""A batch job as it is asked for, with everything checked that needs no model."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import EngineOptions, OptionError, SamplingParams
from ...errors import nearest
from ..extras import need
from ..jobs import SAMPLING
from ..openai.options import ServerOptions
from .columns import result_columns, source_columns
from .jsonl import JsonlSource
from .options import OF_OPENAI_LINES, OF_ROWS, SERVED, BatchOptions
from .resuming import Files, input_settings
from .rows import Source

if TYPE_CHECKING:
    from ... import AsyncEngine

LINES = (".jsonl", ".ndjson")
PARQUET = (".parquet",)
DEMO = "demo"
SERVER = ("fastapi", "prometheus_client", "pydantic")
"""What OpenAI lines need."""
ANSWERS_DEPEND_ON = (
    *("tokenizer", "revision", "tokenizer_revision", "load_format", "dtype", "hf_overrides"),
    *("generation_config", "chat_template", "max_model_len", "mm_processor_kwargs"),
)
"""Engine options, beside the model, that a job goes on with; others may change meanwhile."""
_BOUNDLESS = {"max_waiting": None, "max_n": 2**31, "max_prompts": 2**31, "max_logprobs": -1}
"""Options of servers that protect them from their clients."""


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """A job that can begin."""

    source: Source
    files: Files
    model: str | None
    options: BatchOptions
    server: ServerOptions
    """How OpenAI lines are answered, and which adapters there are."""
    sampling: dict[str, Any]
    """What was given for rows that do not set their own, as JSON has it."""
    engine_options: Mapping[str, Any]
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
    own, engine_options = _split(options)
    known = _engine_options(engine, model, engine_options)
    told = known.model or DEMO
    server = _server_options(own)
    server.check_adapters(server.served_model_name or (told,), enabled=known.enable_lora)
    given = _sampling(sampling)
    lines = _kind(output) in LINES
    opened, settings = _open(source, output)
    openai = _kind(source) in LINES and {"custom_id", "body"} <= set(opened.names)
    _check_form(source, output, own, openai=openai)
    if not openai:
        _check_names(opened, own)
    settings["model"] = told
    settings |= _named("sampling", given)
    settings |= _named("option", {name: getattr(own, name) for name in (*OF_ROWS, *SERVED)})
    settings |= _named("engine", {name: getattr(known, name) for name in ANSWERS_DEPEND_ON})
    return Plan(
        source=opened,
        files=Files.of(output, lines=lines),
        model=None if model is None else str(model),
        options=own,
        server=server,
        sampling=given,
        engine_options=engine_options,
        settings=settings,
        openai=openai,
    )


def _split(options: Mapping[str, Any]) -> tuple[BatchOptions, dict[str, Any]]:
    """Those of the job, and those of its engine."""
    names = {field.name for field in dataclasses.fields(BatchOptions)}
    own = {name: value for name, value in options.items() if name in names}
    return BatchOptions(**own), {name: options[name] for name in options if name not in names}


def _engine_options(
    engine: "AsyncEngine | None", model: str | Path | None, options: Mapping[str, Any]
) -> EngineOptions:
    """Those of the engine, or of the one that will be made, which checks the others."""
    if engine is None:
        names = {"enable_lora", *ANSWERS_DEPEND_ON}
        given = {name: options[name] for name in options if name in names}
        return EngineOptions(model=None if model is None else str(model), **given)
    from ... import AsyncEngine

    if not isinstance(engine, AsyncEngine):
        raise OptionError(
            f"engine={engine!r} must be an AsyncEngine. Make one, or name a model to have it made."
        )
    if model is not None or options:
        names = ", ".join(["model"] * (model is not None) + list(options))
        raise OptionError(f"{names}: the engine that is given has its own. Leave them out.")
    return engine.options


def _server_options(options: BatchOptions) -> ServerOptions:
    for name in ("lora_modules", "served_model_name"):
        if isinstance(value := getattr(options, name), str):
            raise OptionError(f"{name}={value!r} must be a list: give [{value!r}].")
    server = ServerOptions(**{name: getattr(options, name) for name in SERVED}, **_BOUNDLESS)
    server.load_parsers()
    return server


def _sampling(given: SamplingParams | Mapping[str, Any] | None) -> dict[str, Any]:
    """The parameters that were given, checked and as JSON has them."""
    if isinstance(given, SamplingParams):
        params, names = given, SAMPLING
        for name in ("detokenize", "logprobs", "prompt_logprobs"):
            if (value := getattr(given, name)) != getattr(SamplingParams(), name):
                raise OptionError(f"{name}={value!r} has no place in a batch. Leave it out.")
    else:
        names = tuple(given or ())
        params = SamplingParams(**(given or {}))
        for name in names:
            if name not in SAMPLING:
                raise OptionError(f"{name} has no place in a batch. Leave it out.")
    return _as_json({name: getattr(params, name) for name in names})


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


def _check_names(source: Source, options: BatchOptions) -> None:
    """Raises OptionError for columns that are missing from a table, or would be lost."""
    names, wanted = source.names, source_columns(options)
    if not isinstance(source, JsonlSource) and not set(wanted) & set(names):
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


def _named(kind: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{kind} {name}": value for name, value in _as_json(values).items()}


def _as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if not dataclasses.is_dataclass(value) or isinstance(value, type):
            return str(value)
        fields = dataclasses.asdict(value)
        return {name: one for name, one in fields.items() if one is not None}

    return json.loads(json.dumps(values, default=plain))
