"""What adapter_config.json may say, and what is refused by name."""

from typing import Any

import pytest

from quire.lora.config import read_config
from quire.lora.errors import AdapterError

PLAIN: dict[str, Any] = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]}
Q = "model.layers.0.self_attn.q_proj"


def test_defaults_are_those_of_peft() -> None:
    config = read_config({"peft_type": "LORA"})
    assert (config.rank, config.alpha, config.targets.modules) == (8, 8.0, None)
    assert config.module_scale(Q) == 1.0


@pytest.mark.parametrize(
    ("fields", "rank", "scale"),
    [
        ({"lora_alpha": 6}, 4, 1.5),
        ({"lora_alpha": 6, "use_rslora": True}, 4, 3.0),
        ({"rank_pattern": {"q_proj": 16}, "lora_alpha": 8}, 16, 0.5),
        ({"rank_pattern": {"q_proj": 16}, "lora_alpha": 8, "use_rslora": True}, 16, 2.0),
        ({"alpha_pattern": {r"layers\.0\..*": 2}}, 4, 0.5),
        ({"rank_pattern": {"k_proj": 16}, "alpha_pattern": {"k_proj": 1}}, 4, 2.0),
        ({"rank_pattern": None, "alpha_pattern": None, "lora_alpha": 2.5}, 4, 0.625),
    ],
)
def test_rank_and_scale(fields: dict[str, Any], rank: int, scale: float) -> None:
    config = read_config(PLAIN | fields)
    assert (config.module_rank(Q), config.module_scale(Q)) == (rank, scale)


@pytest.mark.parametrize(
    "fields",
    [
        {"fan_in_fan_out": True, "lora_dropout": 0.1, "task_type": "CAUSAL_LM"},
        {"modules_to_save": [], "bias": None, "use_dora": False, "lora_bias": False},
        {"a_newer_field": None, "another": {}, "third": False},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}},
        {"init_lora_weights": False},
    ],
)
def test_without_effect(fields: dict[str, Any]) -> None:
    assert read_config(PLAIN | fields) == read_config(PLAIN)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"peft_type": "ADALORA"}, "peft_type is 'ADALORA', which must be 'LORA'"),
        ({"peft_type": None}, "peft_type is None"),
        ({"use_dora": True}, "use_dora is True, which asks for DoRA"),
        ({"bias": "lora_only"}, "bias is 'lora_only', which asks for trained biases"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\]"),
        ({"trainable_token_indices": [1]}, "tokens trained in full"),
        ({"target_parameters": ["w"]}, "target_parameters is"),
        ({"layer_replication": [[0, 1]]}, "repeated layers"),
        ({"alora_invocation_tokens": [1]}, "activated LoRA"),
        ({"use_qalora": True}, "QALoRA"),
        *(
            ({"init_lora_weights": init}, f"init_lora_weights is '{init}'")
            for init in ("pissa", "pissa_niter_4", "olora", "corda", "lora_ga", "loftq", "newest")
        ),
        ({"use_magic": 1}, "not known, and not empty.*: use_magic is 1"),
        ({"r": 0}, "r is 0; it must be an integer, 1 or more"),
        ({"r": True}, "r is True"),
        ({"lora_alpha": "8"}, "lora_alpha is '8'; it must be a finite number"),
        ({"rank_pattern": {"q": 0}}, "rank_pattern is"),
        ({"rank_pattern": {"(": 4}}, "it must be a regular expression"),
        ({"alpha_pattern": [1]}, "it must be an object of patterns"),
        ({"target_modules": "("}, "target_modules is '\\('; it must be a regular expression"),
        ({"target_modules": 3}, "target_modules is 3"),
        ({"target_modules": [3]}, "it must be a string"),
        ({"layers_to_transform": [-1]}, "it must be an integer, 0 or more"),
        ({"use_rslora": "yes"}, "use_rslora is 'yes'; it must be true or false"),
    ],
)
def test_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(AdapterError, match=text):
        read_config(PLAIN | fields, "sql")


def test_everything_is_said_at_once() -> None:
    with pytest.raises(AdapterError, match=r"'sql'(.|\n)*use_dora(.|\n)*lora_alpha(.|\n)*magic"):
        read_config(PLAIN | {"use_dora": True, "lora_alpha": "x", "magic": 2}, "sql")


@pytest.mark.parametrize("fields", [{"layers_to_transform": [0]}, {"layers_pattern": "layers"}])
def test_layers_need_a_list_of_targets(fields: dict[str, Any]) -> None:
    with pytest.raises(AdapterError, match="only with target_modules as a list"):
        read_config(PLAIN | {"target_modules": "all-linear"} | fields)
