"""Llama's config and checkpoint names; its numbers are in test_architectures."""

from collections.abc import Callable
from typing import Any

import pytest

from quire.errors import ModelConfigError, UnsupportedModelError
from quire.models.llama import Llama, LlamaConfig, canonical_name

REQUIRED = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
]


@pytest.fixture
def hf(hf_fields: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    return hf_fields("llama3")


def test_config_is_hashable_and_has_what_the_engine_reads(hf: dict[str, Any]) -> None:
    config = LlamaConfig.from_hf(hf)
    assert hash(config) == hash(LlamaConfig.from_hf(hf))
    assert (config.vocab_size, config.num_layers, config.num_kv_heads) == (112, 2, 2)
    assert (config.head_dim, config.hidden_size, config.max_model_len) == (8, 32, 128)


@pytest.mark.parametrize("field", REQUIRED)
def test_missing_field_is_named(hf: dict[str, Any], field: str) -> None:
    del hf[field]
    with pytest.raises(ModelConfigError, match=f"no field '{field}', which LlamaForCausalLM"):
        LlamaConfig.from_hf(hf)


@pytest.mark.parametrize("value", ["32", 0, -1, 1.5, True])
def test_malformed_count_is_shown(hf: dict[str, Any], value: Any) -> None:
    with pytest.raises(ModelConfigError, match=f"'vocab_size'.*{value!r}.*at least 1"):
        LlamaConfig.from_hf(hf | {"vocab_size": value})


def test_malformed_number_is_shown(hf: dict[str, Any]) -> None:
    with pytest.raises(ModelConfigError, match=r"'rms_norm_eps'.*'tiny'.*must be a number"):
        LlamaConfig.from_hf(hf | {"rms_norm_eps": "tiny"})


def test_heads_must_divide(hf: dict[str, Any]) -> None:
    with pytest.raises(ModelConfigError, match=r"'num_attention_heads' is 4.*= 3"):
        LlamaConfig.from_hf(hf | {"num_key_value_heads": 3})
    del hf["head_dim"]
    with pytest.raises(ModelConfigError, match=r"'hidden_size' is 34.*= 4"):
        LlamaConfig.from_hf(hf | {"hidden_size": 34})


def test_max_model_len(hf: dict[str, Any]) -> None:
    assert LlamaConfig.from_hf(hf, 17).max_model_len == 17
    with pytest.raises(ModelConfigError, match=r"max_model_len is 129.*1 to 128.*at most 128"):
        LlamaConfig.from_hf(hf, 129)
    with pytest.raises(ModelConfigError, match=r"max_model_len is 0"):
        LlamaConfig.from_hf(hf, 0)


def test_max_model_len_may_use_the_stretched_positions(
    hf_fields: Callable[[str], dict[str, Any]],
) -> None:
    assert LlamaConfig.from_hf(hf_fields("llama_linear")).max_model_len == 128


def test_rope_factors_are_fixed_by_max_model_len(
    hf_fields: Callable[[str], dict[str, Any]],
) -> None:
    hf = hf_fields("llama_dynamic")
    assert LlamaConfig.from_hf(hf, 96).rope != LlamaConfig.from_hf(hf, 128).rope


def test_unknown_activation(hf: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError, match="'mish'"):
        LlamaConfig.from_hf(hf | {"hidden_act": "mish"})


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        ("layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("embed_tokens.weight", "model.embed_tokens.weight"),
        ("norm.weight", "model.norm.weight"),
        ("model.norm.weight", "model.norm.weight"),
        ("lm_head.weight", "lm_head.weight"),
    ],
)
def test_names_without_the_prefix(given: str, canonical: str) -> None:
    assert canonical_name(given) == canonical


def test_known_extras(hf: dict[str, Any]) -> None:
    tied = Llama.checkpoint_map(LlamaConfig.from_hf(hf))
    assert tied.is_ignored("model.layers.11.self_attn.rotary_emb.inv_freq")
    assert tied.is_ignored("lm_head.weight")
    assert not tied.is_ignored("model.layers.0.mlp.up_proj.scales")
    untied = Llama.checkpoint_map(LlamaConfig.from_hf(hf | {"tie_word_embeddings": False}))
    assert not untied.is_ignored("lm_head.weight")
