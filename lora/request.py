"""What a request says of the adapter it wants."""

import dataclasses
import os

from ..errors import OptionError


@dataclasses.dataclass(frozen=True)
class LoRARequest:
    """An adapter by name, number and place. Equal where all three are.

    Raises:
        OptionError: a name or the path is empty or no string, or the id is no int of 1 or more.
    """

    lora_name: str
    """What people and `model=` of a served request call it."""
    lora_int_id: int
    """A number of 1 or more that no other adapter of the engine has."""
    lora_path: str
    """The folder of the adapter, or the id of its repository; a `Path` becomes a string."""
    base_model_name: str | None = dataclasses.field(default=None, compare=False)
    """The name of the model it was made for; only shown."""
    load_inplace: bool = dataclasses.field(default=False, compare=False)
    """Whether to read the files again though an adapter of this name is loaded."""

    def __post_init__(self) -> None:
        if isinstance(self.lora_path, os.PathLike):
            object.__setattr__(self, "lora_path", os.fspath(self.lora_path))
        _check_text("lora_name", self.lora_name)
        _check_text("lora_path", self.lora_path)
        if self.base_model_name is not None:
            _check_text("base_model_name", self.base_model_name)
        _check_id(self.lora_int_id)
        if not isinstance(self.load_inplace, bool):
            raise OptionError(f"load_inplace={self.load_inplace!r} must be True or False.")

    @property
    def name(self) -> str:
        return self.lora_name

    @property
    def id(self) -> int:
        return self.lora_int_id

    @property
    def path(self) -> str:
        return self.lora_path


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str) or not value.strip():
        raise OptionError(
            f"{name}={value!r} is not allowed: it must be a string that is not empty. Write "
            "LoRARequest('my-adapter', 1, '/folder/of/the/adapter')."
        )


def _check_id(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise OptionError(
            f"lora_int_id={value!r} is not allowed: it must be an int, 1 or more. Give each "
            "adapter a number of its own; 0 would mean the base model."
        )
