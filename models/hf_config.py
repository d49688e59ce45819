"""Reads fields of a Hugging Face `config.json` with errors that name the field."""

from collections.abc import Mapping
from typing import Any

from ..errors import ModelConfigError, UnsupportedModelError

HfConfig = Mapping[str, Any]


def required_count(hf: HfConfig, name: str, *, least: int = 1) -> int:
    """The integer `name`.

    Raises:
        ModelConfigError: it is missing, not an integer, or below `least`.
    """
    if hf.get(name) is None:
        raise ModelConfigError(
            f"The model's config.json has no field {name!r}, which {_architecture(hf)} needs. "
            "Take the config.json that belongs to the checkpoint, or add the field."
        )
    value = hf[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ModelConfigError(
            f"The field {name!r} in the model's config.json is {value!r}; it must be an integer "
            f"of at least {least}. Correct the file."
        )
    return value


def optional_count(hf: HfConfig, name: str, default: int, *, least: int = 1) -> int:
    """The integer `name`, or `default` where it is missing or null; raises as above."""
    return default if hf.get(name) is None else required_count(hf, name, least=least)


def window(hf: HfConfig) -> int | None:
    """`sliding_window` in tokens; None where it is missing, null or 0; raises as above."""
    return optional_count(hf, "sliding_window", 0, least=0) or None


def text(hf: HfConfig, name: str, default: str) -> str:
    """The string `name`, or `default` where it is missing or null."""
    value = hf.get(name)
    return default if value is None else str(value)


def number(hf: HfConfig, name: str, default: float) -> float:
    """The number `name`, or `default` where it is missing or null.

    Raises:
        ModelConfigError: it is not a number.
    """
    value = hf.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ModelConfigError(
            f"The field {name!r} in the model's config.json is {value!r}; it must be a number. "
            "Correct the file."
        )
    return float(value)


def flag(hf: HfConfig, name: str, default: bool) -> bool:
    """The truth value `name`, or `default` where it is missing or null."""
    value = hf.get(name)
    return default if value is None else bool(value)


def part(hf: HfConfig, name: str, default: HfConfig) -> HfConfig:
    """The fields of the part `name` of a model, or `default` where it is missing or null.

    Raises:
        ModelConfigError: it is no object.
    """
    fields = hf.get(name)
    if fields is None:
        return default
    if not isinstance(fields, Mapping):
        raise ModelConfigError(
            f"The field {name!r} in the model's config.json is {fields!r}; it must be an object "
            "with the fields of that part of the model. Correct the file."
        )
    return fields


def part_of_kind(hf: HfConfig, name: str, kind: str, whole: str) -> dict[str, Any]:
    """The fields of the part `name` that are given, which must be a model of `kind`.

    Args:
        whole: what it is a part of, with an article.

    Raises:
        ModelConfigError: it is no object.
        UnsupportedModelError: it is another model.
    """
    fields = part(hf, name, {})
    if (given := text(fields, "model_type", kind)) != kind:
        raise UnsupportedModelError(
            f"The {name} in the model's config.json has the model_type {given!r}; only {kind!r} is "
            f"supported in {whole}. Use a model made of that."
        )
    return {field: value for field, value in fields.items() if value is not None}


def tied(*levels: HfConfig) -> bool:
    """Whether head and embedding are one, which a file may say at any of its levels."""
    return any(flag(fields, "tie_word_embeddings", False) for fields in levels)


def token(hf: HfConfig, kind: str, default: int, vocab_size: int) -> int:
    """The token that stands for a feature: `{kind}_token_id`, or `{kind}_token_index` of old files.

    Raises:
        ModelConfigError: it is not in the vocabulary.
    """
    name = f"{kind}_token_index" if hf.get(f"{kind}_token_id") is None else f"{kind}_token_id"
    number = optional_count(hf, name, default, least=0)
    if number >= vocab_size:
        raise ModelConfigError(
            f"The field {name!r} in the model's config.json is {number}; it must be below "
            f"{vocab_size}, the size of the vocabulary. Correct the file."
        )
    return number


def model_len(limit: int, asked: int | None) -> int:
    """`asked`, or `limit` where nothing is asked for; both in tokens.

    Raises:
        ModelConfigError: `asked` is above the limit, or not positive.
    """
    if asked is None:
        return limit
    if not 1 <= asked <= limit:
        raise ModelConfigError(
            f"max_model_len is {asked}, but this model has positions for 1 to {limit} tokens. "
            f"Ask for at most {limit}, or leave max_model_len out."
        )
    return asked


def check_divides(hf: HfConfig, divisor: str, dividend: str) -> None:
    """Raises ModelConfigError unless field `divisor` divides field `dividend`."""
    small, large = required_count(hf, divisor), required_count(hf, dividend)
    if large % small:
        raise ModelConfigError(
            f"In the model's config.json {dividend!r} is {large}, which {divisor!r} = {small} "
            "does not divide. Correct the file."
        )


def _architecture(hf: HfConfig) -> str:
    names = hf.get("architectures") or ["this architecture"]
    return str(names[0])
