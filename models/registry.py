"""Which class builds which architecture."""

from collections.abc import Mapping
from typing import Any

from ..errors import UnsupportedModelError, nearest
from .llama import Llama
from .llava import Llava
from .llava_next import LlavaNext
from .llava_next_video import LlavaNextVideo
from .llava_onevision import LlavaOnevision
from .mistral import Mistral
from .opt import OPT
from .phi3 import Phi3
from .phi3_v import Phi3V
from .qwen2 import Qwen2
from .qwen2_audio import Qwen2Audio
from .qwen2_vl import Qwen2VL
from .qwen3 import Qwen3
from .ultravox import Ultravox

ARCHITECTURES: dict[str, type[Any]] = {
    "LlamaForCausalLM": Llama,
    "LlavaForConditionalGeneration": Llava,
    "LlavaNextForConditionalGeneration": LlavaNext,
    "LlavaNextVideoForConditionalGeneration": LlavaNextVideo,
    "LlavaOnevisionForConditionalGeneration": LlavaOnevision,
    "MistralForCausalLM": Mistral,
    "OPTForCausalLM": OPT,
    "Phi3ForCausalLM": Phi3,
    "Phi3VForCausalLM": Phi3V,
    "Qwen2AudioForConditionalGeneration": Qwen2Audio,
    "Qwen2ForCausalLM": Qwen2,
    "Qwen2VLForConditionalGeneration": Qwen2VL,
    "Qwen3ForCausalLM": Qwen3,
    "UltravoxModel": Ultravox,
}
"""Hugging Face architecture name to class."""


def resolve(hf_config: Mapping[str, Any]) -> type[Any]:
    """The class for the dict in `config.json`; its `config_class.from_hf` makes the config.

    Raises:
        UnsupportedModelError: the architecture is missing or unknown, or the checkpoint is
            quantized.
    """
    _refuse_quantized(hf_config)
    names = hf_config.get("architectures") or []
    for name in names:
        if name in ARCHITECTURES:
            return ARCHITECTURES[name]
    given = (
        f"The architecture {names[0]!r} is not supported"
        if names
        else ("The model's config.json names no architecture")
    )
    raise UnsupportedModelError(
        f"{given}; supported are {', '.join(sorted(ARCHITECTURES))}."
        f"{nearest(str(names[0]), ARCHITECTURES) if names else ''}"
    )


def _refuse_quantized(hf_config: Mapping[str, Any]) -> None:
    quantization = hf_config.get("quantization_config")
    if not quantization:
        return
    method = quantization.get("quant_method", "unknown")
    raise UnsupportedModelError(
        f"The checkpoint is quantized (quant_method {method!r}), and quantized weights are not "
        "supported. Use the model's checkpoint in bfloat16, float16 or float32."
    )
