"""How rows are to be answered: what is given for all of them, checked before a model loads."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import EngineOptions, OptionError, SamplingParams
from ..jobs import SAMPLING
from ..openai.options import ServerOptions
from .options import SERVED, BatchOptions

if TYPE_CHECKING:
    from ... import AsyncEngine

DEMO = "demo"
ANSWERS_DEPEND_ON = (
    *("tokenizer", "revision", "tokenizer_revision", "load_format", "dtype", "hf_overrides"),
    *("generation_config", "chat_template", "max_model_len", "mm_processor_kwargs"),
)
"""Engine options, beside the model, that a job goes on with; others may change meanwhile."""
_BOUNDLESS = {"max_waiting": None, "max_n": 2**31, "max_prompts": 2**31, "max_logprobs": -1}
"""Options of servers that protect them from their clients."""


@dataclasses.dataclass(frozen=True, slots=True)
class Asking:
    """All that answers to rows depend on but the rows."""

    model: str | None
    options: BatchOptions
    server: ServerOptions
    """How OpenAI lines are answered, and which adapters there are."""
    sampling: dict[str, Any]
    """What was given for rows that do not set their own, as JSON has it."""
    engine_options: Mapping[str, Any]
    """Those that were given."""
    known: EngineOptions
    """Those of the engine, at least the ones that answers depend on."""

    @property
    def model_name(self) -> str:
        """What the model is called."""
        return self.known.model or DEMO


def make_asking(
    model: str | Path | None,
    engine: "AsyncEngine | None",
    sampling: SamplingParams | Mapping[str, Any] | None,
    options: Mapping[str, Any],
) -> Asking:
    """Reads what a job is asked for, as `run` has it. Raises OptionError."""
    own, engine_options = _split(options)
    known = _engine_options(engine, model, engine_options)
    server = _server_options(own)
    names = server.served_model_name or (known.model or DEMO,)
    server.check_adapters(names, enabled=known.enable_lora)
    return Asking(
        model=None if model is None else str(model),
        options=own,
        server=server,
        sampling=_sampling(sampling),
        engine_options=engine_options,
        known=known,
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
    return as_json({name: getattr(params, name) for name in names})


def as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as JSON has them; of dataclasses the fields that are not None."""

    def plain(value: Any) -> Any:
        if not dataclasses.is_dataclass(value) or isinstance(value, type):
            return str(value)
        fields = dataclasses.asdict(value)
        return {name: one for name, one in fields.items() if one is not None}

    return json.loads(json.dumps(values, default=plain))
