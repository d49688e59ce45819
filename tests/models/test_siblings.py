"""Where the configs of Mistral, Qwen, Phi-3 and OPT differ from Llama's."""

from collections.abc import Callable
from typing import Any

import pytest

from quire.errors import ModelConfigError
from quire.models.mistral import MistralConfig
from quire.models.opt import OPT, OPTConfig
from quire.models.phi3 import Phi3, Phi3Config
from quire.models.qwen2 import Qwen2Config
from quire.models.qwen3 import Qwen3Config

Fields = Callable[[str], dict[str, Any]]


def test_mistral_window(hf_fields: Fields) -> None:
    hf = hf_fields("mistral")
    assert MistralConfig.from_hf(hf).windows == (12, 12)
    assert MistralConfig.from_hf(hf | {"sliding_window": None}).windows == (None, None)
    del hf["sliding_window"]
    assert MistralConfig.from_hf(hf).windows == (4096, 4096)


def test_mistral_has_eight_kv_heads_where_the_file_does_not_say(hf_fields: Fields) -> None:
    hf = hf_fields("mistral") | {"num_attention_heads": 32}
    del hf["num_key_value_heads"]
    assert MistralConfig.from_hf(hf).num_kv_heads == 8


def test_window_must_be_a_count(hf_fields: Fields) -> None:
    with pytest.raises(ModelConfigError, match=r"'sliding_window'.*-1.*at least 0"):
        MistralConfig.from_hf(hf_fields("mistral") | {"sliding_window": -1})


@pytest.mark.parametrize("config_class", [Qwen2Config, Qwen3Config])
def test_qwen_windows(config_class: Any, hf_fields: Fields) -> None:
    hf = hf_fields("qwen2") | {"layer_types": None}
    assert config_class.from_hf(hf).windows == (None, 12)
    assert config_class.from_hf(hf | {"max_window_layers": 0}).windows == (12, 12)
    assert config_class.from_hf(hf | {"use_sliding_window": False}).windows == (None, None)
    explicit = hf | {"layer_types": ["sliding_attention", "full_attention"]}
    assert config_class.from_hf(explicit).windows == (12, None)


@pytest.mark.parametrize("kinds", [["full_attention"], ["full_attention", "linear_attention"]])
def test_malformed_layer_types(kinds: list[str], hf_fields: Fields) -> None:
    with pytest.raises(ModelConfigError, match=r"'layer_types'.*list of 2"):
        Qwen2Config.from_hf(hf_fields("qwen2") | {"layer_types": kinds})


def test_qwen_biases_and_norms(hf_fields: Fields) -> None:
    two = Qwen2Config.from_hf(hf_fields("qwen2"))
    assert (two.qkv_bias, two.out_bias, two.qk_norm) == (True, False, False)
    three = Qwen3Config.from_hf(hf_fields("qwen3"))
    assert (three.qkv_bias, three.out_bias, three.qk_norm) == (False, False, True)
    assert Qwen3Config.from_hf(hf_fields("qwen3") | {"attention_bias": True}).qkv_bias


def test_qwen3_heads_are_128_wide_where_the_file_does_not_say(hf_fields: Fields) -> None:
    hf = hf_fields("qwen3")
    del hf["head_dim"]
    assert Qwen3Config.from_hf(hf).head_dim == 128


@pytest.mark.parametrize("old", ["su", "yarn"])
def test_phi3_old_rope_types_are_longrope(old: str, hf_fields: Fields) -> None:
    hf = hf_fields("phi3_longrope_long")
    expected = Phi3Config.from_hf(hf)
    assert Phi3Config.from_hf(hf | {"rope_scaling": hf["rope_scaling"] | {"type": old}}) == expected


def test_phi3_factors_depend_on_max_model_len(hf_fields: Fields) -> None:
    hf = hf_fields("phi3_longrope_long")
    at, above = (Phi3Config.from_hf(hf, length).rope for length in (64, 65))
    assert at.inv_freq != above.inv_freq
    assert at.attention_factor == above.attention_factor > 1


def test_phi3_takes_rows_of_the_fused_tensors(hf_fields: Fields) -> None:
    config = Phi3Config.from_hf(hf_fields("phi3"))
    pieces = Phi3.checkpoint_map(config).pieces
    rows = [piece.rows for piece in pieces if piece.param == "layers.0.attention.qkv"]
    assert rows == [slice(0, 32), slice(32, 48), slice(48, 64)]


def test_opt_sizes(hf_fields: Fields) -> None:
    config = OPTConfig.from_hf(hf_fields("opt_350m"), 40)
    assert (config.hidden_size, config.embedding_size, config.head_dim) == (32, 16, 8)
    assert (config.max_model_len, config.positions) == (40, 64)
    assert not config.norm_first
    assert not config.final_norm
    with pytest.raises(ModelConfigError, match=r"max_model_len is 65.*1 to 64"):
        OPTConfig.from_hf(hf_fields("opt"), 65)


def test_opt_final_norm_may_have_been_removed(hf_fields: Fields) -> None:
    assert OPTConfig.from_hf(hf_fields("opt")).final_norm
    assert not OPTConfig.from_hf(hf_fields("opt") | {"_remove_final_layer_norm": True}).final_norm


@pytest.mark.parametrize("field", ["ffn_dim", "hidden_size", "max_position_embeddings"])
def test_opt_missing_field_is_named(field: str, hf_fields: Fields) -> None:
    hf = hf_fields("opt")
    del hf[field]
    with pytest.raises(ModelConfigError, match=f"no field '{field}', which OPTForCausalLM"):
        OPTConfig.from_hf(hf)


def test_opt_names(hf_fields: Fields) -> None:
    tied = OPT.checkpoint_map(OPTConfig.from_hf(hf_fields("opt")))
    name = "model.decoder.layers.0.fc1.weight"
    assert tied.canonical("decoder.layers.0.fc1.weight") == name
    assert tied.canonical(name) == name
    assert tied.is_ignored("lm_head.weight")
    untied = OPT.checkpoint_map(
        OPTConfig.from_hf(hf_fields("opt") | {"tie_word_embeddings": False})
    )
    assert "head.weight" in {piece.param for piece in untied.pieces}
