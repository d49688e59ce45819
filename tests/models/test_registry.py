"""From architecture name to class."""

import pytest

from quire.errors import UnsupportedModelError
from quire.models import registry
from quire.models.llama import Llama


def test_resolve() -> None:
    assert registry.resolve({"architectures": ["LlamaForCausalLM"]}) is Llama
    assert registry.resolve({"architectures": ["Other", "LlamaForCausalLM"]}) is Llama


def test_every_class_says_how_its_config_is_made() -> None:
    for cls in registry.ARCHITECTURES.values():
        assert callable(cls.config_class.from_hf)


def test_unknown_architecture_lists_what_is_supported() -> None:
    with pytest.raises(
        UnsupportedModelError,
        match=r"'Qwen4ForCausalLM'.*LlamaForCausalLM.*OPTForCausalLM.*Did you mean 'Qwen",
    ):
        registry.resolve({"architectures": ["Qwen4ForCausalLM"]})


@pytest.mark.parametrize("hf", [{}, {"architectures": None}, {"architectures": []}])
def test_missing_architecture_lists_what_is_supported(hf: dict) -> None:
    with pytest.raises(UnsupportedModelError, match=r"names no architecture.*LlamaForCausalLM"):
        registry.resolve(hf)


def test_quantized_checkpoints_are_refused_with_the_remedy() -> None:
    hf = {"architectures": ["LlamaForCausalLM"], "quantization_config": {"quant_method": "gptq"}}
    with pytest.raises(UnsupportedModelError, match=r"'gptq'.*bfloat16"):
        registry.resolve(hf)
