"""Every architecture with PEFT's adapters in its weights against what PEFT computes."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.lora.conftest import contents

from quire.lora.adapter import merged
from quire.lora.config import read_config
from quire.lora.reader import read_adapter

VARIANTS = sorted(
    path.name for path in (Path(__file__).parent.parent / "fixtures" / "lora").iterdir()
)
TOLERANCE = 1e-3


def read(adapter: Any, base: Any) -> Any:
    return read_adapter("test", read_config(adapter.fields), adapter.tensors, base, max_rank=8)


def test_every_architecture_has_an_adapter(
    reference_model: Callable[[str], Any], reference_adapter: Callable[[str], Any]
) -> None:
    models = [reference_model(reference_adapter(name).model) for name in VARIANTS]
    names = {model.architecture.__name__ for model in models}
    assert names == {"Llama", "Mistral", "OPT", "Phi3", "Qwen2", "Qwen3"}


@pytest.mark.parametrize("name", VARIANTS)
def test_merged_adapter_agrees(
    name: str, reference_model: Callable[[str], Any], reference_adapter: Callable[[str], Any]
) -> None:
    adapter = reference_adapter(name)
    model = reference_model(adapter.model)
    params = merged(model.params, read(adapter, model.base))
    assert np.abs(model.logits(params, adapter.prompt) - adapter.logits).max() < TOLERANCE
    plain = model.logits(model.params, adapter.prompt)
    assert np.abs(plain - adapter.logits).max() > 50 * TOLERANCE


@pytest.mark.parametrize("name", VARIANTS)
def test_parts_have_the_shapes_of_what_they_change(
    name: str, reference_model: Callable[[str], Any], reference_adapter: Callable[[str], Any]
) -> None:
    model = reference_model(reference_adapter(name).model)
    adapter = read(reference_adapter(name), model.base)
    ranks = set()
    for path, parts in adapter.parts.items():
        tied_head = path == "head.weight" and model.config.tie_embeddings
        weight = model.params["embed.weight" if tied_head else path]
        for part in parts:
            assert part.a.dtype == part.b.dtype == np.float32
            assert (*part.b.shape[:-1], part.a.shape[1]) == weight[part.index].shape
            assert part.b.shape[-1] == part.a.shape[0]
            ranks.add(part.a.shape[0])
    assert adapter.rank == max(ranks)


def test_fused_module_shares_its_a(
    reference_model: Callable[[str], Any], reference_adapter: Callable[[str], Any]
) -> None:
    adapter = read(reference_adapter("phi3"), reference_model("phi3").base)
    q, k, v = adapter.parts["layers.0.attention.qkv"]
    assert q.down is k.down is v.down


def test_tied_model_keeps_updates_of_embedding_and_head_apart(
    reference_model: Callable[[str], Any], reference_adapter: Callable[[str], Any]
) -> None:
    model = reference_model("llama3")
    adapter = read(reference_adapter("llama3_tied"), model.base)
    assert {"embed.weight", "head.weight"} <= adapter.parts.keys()
    params = merged(model.params, adapter)
    assert not np.array_equal(params["embed.weight"], params["head.weight"])
    assert "head.weight" not in model.params


def test_adapter_of_the_model_without_its_head(
    reference_model: Callable[[str], Any], reference_adapter: Callable[[str], Any]
) -> None:
    """Such a one lacks the prefix `model.` in names and patterns."""
    adapter, model = reference_adapter("llama31_regex"), reference_model("llama31")
    bare = dataclasses.replace(
        adapter,
        fields=adapter.fields
        | {
            "target_modules": r"layers\.1\.(self_attn\.(q|v|o)_proj|mlp\..*_proj)",
            "exclude_modules": None,
            "rank_pattern": {"(q|v)_proj": 8, r"^layers\.1\.mlp\.up_proj": 2},
        },
        tensors={
            name.replace("model.model.", "model."): array for name, array in adapter.tensors.items()
        },
    )
    assert contents(read(bare, model.base)) == contents(read(adapter, model.base))
