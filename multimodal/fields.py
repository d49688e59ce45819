"""Fields of `preprocessor_config.json`, with errors that name the field."""

from collections.abc import Mapping
from typing import Any

from ..errors import ModelConfigError

HfConfig = Mapping[str, Any]


def count(hf: HfConfig, name: str, default: int) -> int:
    """The integer field `name`, at least 1; raises ModelConfigError."""
    value = default if hf.get(name) is None else hf[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise malformed(name, value, "an integer of at least 1")
    return value


def malformed(name: str, value: object, allowed: str) -> ModelConfigError:
    """The error for a field that is not what is `allowed`."""
    return ModelConfigError(
        f"The field {name!r} in the model's preprocessor_config.json is {value!r}; it must be "
        f"{allowed}. Correct the file."
    )
