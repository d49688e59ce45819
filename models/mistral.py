"""Mistral: Llama with a sliding window over every layer."""

import dataclasses
from typing import Any, ClassVar

from . import hf_config
from .llama import Llama, LlamaConfig


@dataclasses.dataclass(frozen=True)
class MistralConfig(LlamaConfig):
    """`sliding_window` is 4096 where `config.json` does not say, and off where it says null."""

    @classmethod
    def _fields(cls, hf: hf_config.HfConfig, max_model_len: int | None) -> dict[str, Any]:
        fields = super()._fields({"num_key_value_heads": 8, **hf}, max_model_len)
        window = hf_config.window({"sliding_window": 4096, **hf})
        return fields | {"windows": (window,) * fields["num_layers"]}


class Mistral(Llama):
    """`MistralForCausalLM`."""

    config_class: ClassVar[type[LlamaConfig]] = MistralConfig
