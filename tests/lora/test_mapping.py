"""The modules of the fixture models, and what the names of tensors say."""

from collections.abc import Callable
from typing import Any

import pytest

from quire.lora.mapping import parse_name


def test_fused_module_of_the_checkpoint_has_several_slots(
    reference_model: Callable[[str], Any],
) -> None:
    module = reference_model("phi3").base.modules["model.layers.1.self_attn.qkv_proj"]
    rows = [slot.rows for slot in module.slots]
    assert rows == [slice(0, 32), slice(32, 48), slice(48, 64)]
    assert (module.out_size, module.in_size) == (64, 32)
    assert {slot.param for slot in module.slots} == {"layers.1.attention.qkv"}


def test_norms_biases_and_positions_are_no_modules(reference_model: Callable[[str], Any]) -> None:
    names = reference_model("opt").base.modules
    layer = ("fc1", "fc2", "k_proj", "out_proj", "q_proj", "v_proj")
    ends = {name.rpartition(".")[2] for name in names}
    assert ends == {*layer, "embed_tokens", "lm_head"}


@pytest.mark.parametrize("name", ["llama2", "llama3"])
def test_head_is_a_module_tied_or_not(name: str, reference_model: Callable[[str], Any]) -> None:
    base = reference_model(name).base
    (slot,) = base.modules["lm_head"].slots
    assert (slot.param, slot.shape) == ("head.weight", (112, 32))
    assert base.modules["lm_head"].kind == "head"
    assert base.param(slot) is base.params["embed.weight" if base.tied else "head.weight"]


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("base_model.model.model.h.0.q.lora_A.weight", ("model.h.0.q", "A")),
        ("base_model.model.h.q.lora_B.default.weight", ("h.q", "B")),
        ("base_model.model.embed_tokens.lora_embedding_A.default", ("embed_tokens", "A")),
        ("base_model.model.embed_tokens.lora_embedding_B", ("embed_tokens", "B")),
        ("base_model.model.lm_head.base_layer.weight", ("lm_head", "copy")),
        ("base_model.model.lm_head.weight", ("lm_head", "copy")),
        ("h.q.lora_B.bias", None),
        ("h.q.lora_magnitude_vector.weight", None),
        ("h.q.bias", None),
    ],
)
def test_parse_name(name: str, parsed: tuple[str, str] | None) -> None:
    assert parse_name(name) == parsed
