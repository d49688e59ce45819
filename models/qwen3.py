"""Qwen 3: Llama with a norm on every query and key head, and windows on some layers."""

import dataclasses
from typing import Any, ClassVar

from . import hf_config
from .llama import Llama, LlamaConfig
from .qwen2 import layer_windows


@dataclasses.dataclass(frozen=True)
class Qwen3Config(LlamaConfig):
    """`head_dim` is 128 where `config.json` does not say."""

    @classmethod
    def _fields(cls, hf: hf_config.HfConfig, max_model_len: int | None) -> dict[str, Any]:
        fields = super()._fields({"head_dim": 128, **hf}, max_model_len)
        windows = layer_windows(hf, fields["num_layers"])
        return fields | {"windows": windows, "qk_norm": True, "mlp_bias": False}


class Qwen3(Llama):
    """`Qwen3ForCausalLM`."""

    config_class: ClassVar[type[LlamaConfig]] = Qwen3Config
