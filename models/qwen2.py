"""Qwen 2 and 2.5: Llama with biases on q, k and v, and windows on some layers."""

import dataclasses
from typing import Any, ClassVar

from ..errors import ModelConfigError
from . import hf_config
from .llama import Llama, LlamaConfig

FULL, SLIDING = "full_attention", "sliding_attention"
DEFAULTS: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
}
"""What `transformers` takes where a file that is not of Qwen's own does not say."""


@dataclasses.dataclass(frozen=True)
class Qwen2Config(LlamaConfig):
    """Windows need `use_sliding_window`; `layer_types` or `max_window_layers` says which layers."""

    @classmethod
    def _fields(cls, hf: hf_config.HfConfig, max_model_len: int | None) -> dict[str, Any]:
        fields = super()._fields(hf, max_model_len)
        windows = layer_windows(hf, fields["num_layers"])
        return fields | {"windows": windows, "qkv_bias": True, "out_bias": False, "mlp_bias": False}


class Qwen2(Llama):
    """`Qwen2ForCausalLM`."""

    config_class: ClassVar[type[LlamaConfig]] = Qwen2Config


def layer_windows(hf: hf_config.HfConfig, num_layers: int) -> tuple[int | None, ...]:
    """Each layer's window in tokens, None where it sees everything.

    Raises:
        ModelConfigError: `layer_types` is malformed, or the window is missing.
    """
    if not hf_config.flag(hf, "use_sliding_window", False):
        return (None,) * num_layers
    window = hf_config.window({"sliding_window": 4096, **hf})
    return tuple(window if kind == SLIDING else None for kind in _layer_types(hf, num_layers))


def _layer_types(hf: hf_config.HfConfig, num_layers: int) -> list[str]:
    kinds = hf.get("layer_types")
    if kinds is None:
        full = hf_config.optional_count(hf, "max_window_layers", 28, least=0)
        return [FULL if i < full else SLIDING for i in range(num_layers)]
    if len(kinds) != num_layers or not set(kinds) <= {FULL, SLIDING}:
        raise ModelConfigError(
            f"The field 'layer_types' in the model's config.json is {kinds!r}; it must be a list "
            f"of {num_layers} strings, each {FULL!r} or {SLIDING!r}. Correct the file."
        )
    return kinds
