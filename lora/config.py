"""Reads `adapter_config.json`, and refuses whatever would not give PEFT's results.

https://huggingface.co/docs/peft/package_reference/lora describes the fields.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from .errors import refused
from .targets import ALL_LINEAR, Targets, pattern_value

T = TypeVar("T")

_WITHOUT_EFFECT = frozenset(
    {
        "auto_mapping",
        "corda_config",
        "eva_config",
        "fan_in_fan_out",  # PEFT itself sets it aside for every layer these models have
        "inference_mode",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "merge_weights",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "task_type",
        "velora_config",
    }
)
"""Fields that matter in training only, or only beside another field that is refused."""

_REFUSED = {
    "alora_invocation_tokens": "activated LoRA, which begins at a token",
    "arrow_config": "Arrow, a choice among adapters",
    "kasa_config": "KaSA, which changes the model's weights",
    "layer_replication": "repeated layers",
    "lora_bias": "a bias beside lora_B",
    "megatron_config": "Megatron layers",
    "modules_to_save": "modules trained in full",
    "monteclora_config": "Monte Carlo LoRA",
    "target_parameters": "adapters on parameters rather than modules",
    "trainable_token_indices": "tokens trained in full",
    "use_bdlora": "block-diagonal LoRA",
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
}
"""Fields that must be absent, null, false or empty, and what they ask for."""

_PLAIN_INITS = ("eva", "gaussian", "mica", "orthogonal")
"""Ways to start the training that leave the model's weights as they are."""

_REMEDY = (
    "Train the adapter as plain LoRA, with bias 'none' and the modules it changes as "
    "target_modules, or merge it into the model and save that."
)


class _BadFieldError(Exception):
    """A field is malformed; its text says what it must be."""


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """What an adapter's tensors mean. `read_config` makes it."""

    rank: int
    alpha: float
    targets: Targets
    rank_patterns: Mapping[str, int]
    """By regular expression of the end of a module's name; the first that fits counts."""
    alpha_patterns: Mapping[str, float]
    rank_stabilized: bool
    """Whether updates are scaled by alpha / sqrt(rank) rather than alpha / rank."""
    tie_weights: bool
    """Whether the head of a tied model is changed too where the embedding is."""
    base_name: str
    """The model it was made for; empty where it is not said."""

    def module_rank(self, module: str) -> int:
        """The rank at a module, by the name that PEFT sees."""
        return pattern_value(self.rank_patterns, module, self.rank)

    def module_scale(self, module: str) -> float:
        """The factor of `lora_B @ lora_A` at a module."""
        rank = self.module_rank(module)
        alpha = pattern_value(self.alpha_patterns, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)


def read_config(fields: Mapping[str, Any], name: str = "") -> AdapterConfig:
    """The config of a plain LoRA adapter, from the dict in `adapter_config.json`.

    Args:
        name: of the adapter, for the errors.

    Raises:
        AdapterError: a field is malformed, or asks for what is not supported; it lists them all.
    """
    problems = _unsupported(fields)
    read = _Reader(fields)
    config = AdapterConfig(
        rank=read("r", _count, 8),
        alpha=read("lora_alpha", _number, 8.0),
        targets=_targets(read),
        rank_patterns=read("rank_pattern", _patterns(_count), {}),
        alpha_patterns=read("alpha_pattern", _patterns(_number), {}),
        rank_stabilized=read("use_rslora", _flag, False),
        tie_weights=read("ensure_weight_tying", _flag, False),
        base_name=read("base_model_name_or_path", _text, ""),
    )
    problems |= read.problems()
    if problems:
        raise refused(f"The adapter {name!r} cannot be used", problems, _REMEDY)
    return config


class _Reader:
    """Takes fields out of a dict, and remembers which are malformed and which nobody took."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields
        self._taken = {"peft_type", "bias", "init_lora_weights", *_WITHOUT_EFFECT, *_REFUSED}
        self._malformed: list[str] = []

    def __call__(self, name: str, parse: Callable[[Any], T], default: T) -> T:
        """The field `name`; `default` where it is absent, null, or malformed."""
        self._taken.add(name)
        if self._fields.get(name) is None:
            return default
        try:
            return parse(self._fields[name])
        except _BadFieldError as error:
            self._malformed.append(f"{name} is {self._fields[name]!r}; it must be {error}")
            return default

    def problems(self) -> dict[str, list[str]]:
        unknown = [
            f"{name} is {value!r}"
            for name, value in self._fields.items()
            if name not in self._taken and value not in (None, False, "", [], {})
        ]
        kinds = {
            "malformed fields of adapter_config.json": self._malformed,
            "fields of adapter_config.json that are not known, and not empty": unknown,
        }
        return {kind: cases for kind, cases in kinds.items() if cases}


def _unsupported(fields: Mapping[str, Any]) -> dict[str, list[str]]:
    cases = [
        f"{name} is {fields[name]!r}, which asks for {what}"
        for name, what in _REFUSED.items()
        if fields.get(name)
    ]
    if (kind := fields.get("peft_type")) != "LORA":
        cases.insert(0, f"peft_type is {kind!r}, which must be 'LORA'")
    if (bias := fields.get("bias") or "none") != "none":
        cases.append(f"bias is {bias!r}, which asks for trained biases")
    if isinstance(fields.get("target_modules"), str):
        cases += [
            f"{name} is {fields[name]!r}, which works only with target_modules as a list"
            for name in ("layers_to_transform", "layers_pattern")
            if fields.get(name) is not None
        ]
    init = fields.get("init_lora_weights", True)
    if not (init is None or isinstance(init, bool) or init in _PLAIN_INITS):
        cases.append(
            f"init_lora_weights is {init!r}, which may have changed the model's own weights; "
            "PEFT saves a plain adapter where it is given path_initial_model_for_weight_conversion"
        )
    return {"what is not supported": cases} if cases else {}


def _targets(read: _Reader) -> Targets:
    return Targets(
        modules=read("target_modules", _names, None),
        exclude=read("exclude_modules", _names, frozenset()),
        layers=read("layers_to_transform", _layers, ()),
        layers_patterns=read("layers_pattern", _expressions, ()),
    )


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _BadFieldError("an integer, 1 or more")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _BadFieldError("a finite number")
    return float(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _BadFieldError("true or false")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _BadFieldError("a string")
    return value


def _expression(value: Any) -> str:
    try:
        re.compile(_text(value))
    except re.error as error:
        raise _BadFieldError(f"a regular expression ({error})") from error
    return value


def _names(value: Any) -> frozenset[str] | str:
    """Module names, or one regular expression or ALL_LINEAR."""
    if isinstance(value, str):
        return value if value.lower() == ALL_LINEAR else _expression(value)
    return frozenset(_text(item) for item in _list(value))


def _expressions(value: Any) -> tuple[str, ...]:
    items = [value] if isinstance(value, str) else _list(value)
    return tuple(_expression(item) for item in items if item)


def _layer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _BadFieldError("an integer, 0 or more, or a list of them")
    return value


def _layers(value: Any) -> tuple[int, ...]:
    return (
        tuple(map(_layer, cast("list[Any]", value)))
        if isinstance(value, list)
        else (_layer(value),)
    )


def _list(value: Any) -> Sequence[Any]:
    if not isinstance(value, list):
        raise _BadFieldError("a string or a list of them")
    return cast("Sequence[Any]", value)


def _patterns(parse: Callable[[Any], T]) -> Callable[[Any], dict[str, T]]:
    """Reads a dict from regular expressions to what `parse` reads."""

    def read(value: Any) -> dict[str, T]:
        if not isinstance(value, dict):
            raise _BadFieldError("an object of patterns")
        items = cast("dict[str, Any]", value).items()
        return {_expression(pattern): parse(item) for pattern, item in items}

    return read
