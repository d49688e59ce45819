"""Command-line flags made from the fields of an options dataclass, one flag a field."""

import argparse
import ast
import dataclasses
import functools
import inspect
import json
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args, get_origin

from .. import EngineOptions, SamplingParams

ENGINE_LEFT_OUT = frozenset({"mesh", "model", "seed", "skip_tokenizer_init"})
"""Engine options that are no flags: named otherwise, or of no use where text goes in and out."""
SAMPLING_LEFT_OUT = frozenset({"detokenize", "logprobs", "output_kind", "prompt_logprobs"})
"""Sampling parameters that change what Python returns, not the text."""


REPEATED = ("append", "extend")
COMPATIBLE: dict[str, type] = {
    "block_size": int,
    "cpu_offload_gb": float,
    "device": str,
    "disable_log_requests": bool,
    "disable_log_stats": bool,
    "distributed_executor_backend": str,
    "enable_chunked_prefill": bool,
    "kv_cache_dtype": str,
    "pipeline_parallel_size": int,
    "quantization": str,
    "swap_space": float,
    "task": str,
    "tokenizer_mode": str,
    "trust_remote_code": bool,
}
"""Engine options that are no fields of `EngineOptions`, and the types of their values."""

FROM_THE_MODEL = "What is not given comes from the model's generation config, then from here."

MODEL_HELP = "Hugging Face id, local folder, or an embedded model: demo, vision-demo, audio-demo"


def add_model_flag(parser: argparse.ArgumentParser) -> None:
    """--model, where None is the demo model."""
    text = f"{MODEL_HELP} (default: demo)"
    parser.add_argument("--model", metavar="MODEL", help=text)


def add_engine_options(
    parser: argparse.ArgumentParser, only: frozenset[str] | None = None, **defaults: Any
) -> None:
    """A flag for every engine option, or those in `only`; `defaults` replace the engine's own."""
    group = parser.add_argument_group("engine")
    leave_out = _left_out(EngineOptions, only, ENGINE_LEFT_OUT)
    _add_fields(group, EngineOptions, leave_out, defaults)


def add_sampling_params(
    parser: argparse.ArgumentParser,
    only: frozenset[str] | None = None,
    about: str = FROM_THE_MODEL,
    **defaults: Any,
) -> None:
    """A flag for every sampling parameter that concerns text, or those in `only`.

    `defaults` replace those that `about` speaks of.
    """
    group = parser.add_argument_group("sampling", about)
    leave_out = _left_out(SamplingParams, only, SAMPLING_LEFT_OUT)
    _add_fields(group, SamplingParams, leave_out, defaults)


def add_options(
    parser: argparse.ArgumentParser, title: str, cls: type, leave_out: frozenset[str]
) -> None:
    """A flag for every field of an options dataclass but those to leave out.

    What a field's metadata has under "flag" are keywords of `add_argument` for it.
    """
    _add_fields(parser.add_argument_group(title), cls, leave_out, {})


def add_compatible_flags(parser: argparse.ArgumentParser) -> None:
    """Flags, not shown, of other engines: an `Engine` refuses values that would change a thing."""
    for name, kind in COMPATIBLE.items():
        reading = {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS, **_reading(kind)}
        parser.add_argument("--" + name.replace("_", "-"), dest=name, **reading)


def compatible_flags(args: argparse.Namespace) -> dict[str, Any]:
    """The flags for compatibility that were given, as keywords of `Engine`."""
    return {name: getattr(args, name) for name in COMPATIBLE if hasattr(args, name)}


def engine_options(
    args: argparse.Namespace, leave_out: frozenset[str] = ENGINE_LEFT_OUT
) -> dict[str, Any]:
    """The engine options that were given, as keywords of `Engine`."""
    return options(args, EngineOptions, leave_out)


def sampling_params(args: argparse.Namespace, only: frozenset[str] | None = None) -> dict[str, Any]:
    """The sampling parameters that were given, or those in `only`, as `SamplingParams` keywords."""
    return options(args, SamplingParams, _left_out(SamplingParams, only, SAMPLING_LEFT_OUT))


def options(args: argparse.Namespace, cls: type, leave_out: frozenset[str]) -> dict[str, Any]:
    """The options of a dataclass that were given, by field."""
    names = [field.name for field in dataclasses.fields(cls) if field.name not in leave_out]
    return {name: getattr(args, name) for name in names if hasattr(args, name)}


def _left_out(cls: type, only: frozenset[str] | None, otherwise: frozenset[str]) -> frozenset[str]:
    """Names of fields that are no flags: all but `only`, or `otherwise` where that is None."""
    if only is None:
        return otherwise
    return frozenset(field.name for field in dataclasses.fields(cls)) - only


def _add_fields(
    group: Any, cls: type, leave_out: frozenset[str], defaults: Mapping[str, Any]
) -> None:
    docs = _field_docs(cls)
    for field in dataclasses.fields(cls):
        if field.name in leave_out:
            continue
        default = defaults.get(field.name, field.default)
        reading = _reading(field.type) | field.metadata.get("flag", {})
        again = " May be given several times." if reading["action"] in REPEATED else ""
        group.add_argument(
            "--" + field.name.replace("_", "-"),
            dest=field.name,
            default=defaults.get(field.name, argparse.SUPPRESS),
            help=_help(docs.get(field.name, "") + again, default),
            **reading,
        )


def _help(text: str, default: object) -> str:
    words = " ".join(text.split())
    shown = "" if default is None else f" (default: {default})"
    return f"{words}{shown}".strip().replace("%", "%%")


def _reading(annotation: Any) -> dict[str, Any]:
    """How argparse reads a value of the type: keywords of `add_argument`."""
    if annotation is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(annotation) is Literal:
        return {"action": "store", "choices": get_args(annotation)}
    members = get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    origins = {get_origin(member): member for member in members}
    if list in origins:
        (item,) = get_args(origins[list])
        return {"action": "append", "type": item, "metavar": item.__name__.upper()}
    if origins.keys() & {dict, Mapping}:
        return {"action": "store", "type": _json_object, "metavar": "JSON"}
    scalar = next(member for member in members if member is not types.NoneType)
    reader = _or_none(scalar) if types.NoneType in members else scalar
    return {"action": "store", "type": reader, "metavar": scalar.__name__.upper()}


def _or_none(scalar: Callable[[str], Any]) -> Callable[[str], Any]:
    """Reads as `scalar` does, and the word none as None."""

    @functools.wraps(scalar, updated=())
    def read(text: str) -> Any:
        return None if text.lower() == "none" else scalar(text)

    return read


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object, such as '{{}}'")
    return value


def _field_docs(cls: type) -> dict[str, str]:
    """The string under each field of a class, by field, read from its source."""
    (definition,) = ast.parse(inspect.getsource(cls)).body
    assert isinstance(definition, ast.ClassDef)
    docs: dict[str, str] = {}
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        match below:
            case ast.Expr(ast.Constant(str(text))):
                docs[field.target.id] = text
    return docs
