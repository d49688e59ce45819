"""Makes tests/fixtures/models: tiny random models with what `transformers` computes of them.

Run by hand, with torch and transformers installed: `python scripts/make_model_fixtures.py`.
Each folder holds config.json, model.safetensors (float32) and expected.npz: prompts, the logits of
every prompt token, and the tokens that greedy decoding adds.

Rope factors that depend on the length are fixed for `max_model_len`, as the engine does.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

OUTPUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "models"
PROMPT_LENGTHS = (5, 29)
NEW_TOKENS = 24
LEAST_MARGIN = 0.01
"""Between the best and the second logit of a greedy step, so that rounding decides nothing."""

SMALL = {
    "vocab_size": 112,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
LLAMA = SMALL | {
    "intermediate_size": 24,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}
OPT = SMALL | {"ffn_dim": 24, "max_position_embeddings": 64}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.2, 1.5, 1.7],
    "long_factor": [1.3, 2.0, 3.5, 6.0],
}
PHI3_LONGROPE = LLAMA | {
    "original_max_position_embeddings": 64,
    "max_position_embeddings": 256,
    "rope_parameters": LONGROPE,
}

VARIANTS: dict[str, tuple[str, dict[str, Any], int | None]] = {
    "llama2": ("Llama", LLAMA | {"num_key_value_heads": 4, "tie_word_embeddings": False}, None),
    "llama3": ("Llama", LLAMA | {"rope_parameters": {"rope_theta": 500000.0}}, 100),
    "llama31": (
        "Llama",
        LLAMA
        | {
            "head_dim": 16,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
        None,
    ),
    "llama_linear": (
        "Llama",
        LLAMA
        | {
            "max_position_embeddings": 32,
            "num_key_value_heads": 1,
            "rope_parameters": {"rope_type": "linear", "factor": 4.0},
        },
        None,
    ),
    "llama_dynamic": (
        "Llama",
        LLAMA
        | {
            "max_position_embeddings": 32,
            "rope_parameters": {"rope_type": "dynamic", "factor": 4.0},
        },
        96,
    ),
    "llama_yarn": (
        "Llama",
        LLAMA
        | {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
        None,
    ),
    "llama_bias": ("Llama", LLAMA | {"attention_bias": True, "mlp_bias": True}, None),
    "mistral": ("Mistral", LLAMA | {"sliding_window": 12, "tie_word_embeddings": False}, None),
    "qwen2": (
        "Qwen2",
        LLAMA | {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 12},
        None,
    ),
    "qwen3": ("Qwen3", LLAMA | {"head_dim": 16, "tie_word_embeddings": False}, None),
    "phi3": (
        "Phi3",
        LLAMA
        | {
            "sliding_window": 20,
            "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5},
        },
        None,
    ),
    "phi3_longrope_short": ("Phi3", PHI3_LONGROPE, 64),
    "phi3_longrope_long": ("Phi3", PHI3_LONGROPE, 256),
    "opt": ("OPT", OPT, None),
    "opt_350m": ("OPT", OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 16}, None),
    "opt_plain": ("OPT", OPT | {"enable_bias": False, "layer_norm_elementwise_affine": False}, 64),
}
"""Name to family, fields of its config, and `max_model_len`."""


def without_model_prefix(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}


def with_known_extras(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    extras = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(2)}
    return tensors | extras


RENAMED: dict[str, Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]] = {
    "llama2": with_known_extras,
    "llama3": without_model_prefix,
    "opt": without_model_prefix,
}
"""Checkpoints whose tensors are named or accompanied as in old files."""

OLD_STYLE = {"llama2", "llama31", "llama_linear", "phi3_longrope_long"}
"""Variants whose config.json has `torch_dtype`, `rope_theta` and `rope_scaling`."""


def main() -> None:
    torch.set_num_threads(1)
    for name, (family, fields, max_model_len) in VARIANTS.items():
        config = getattr(transformers, f"{family}Config")(**fields)
        seed, model, expected = find_model(family, config, max_model_len)
        write(OUTPUT / name, name, config, model, expected | {"max_model_len": max_model_len or 0})
        print(f"{name}: seed {seed}")


def find_model(family: str, config: Any, max_model_len: int | None) -> tuple[int, Any, Any]:
    """The first seed whose greedy tokens are neither a tie nor all the same."""
    for seed in range(1000):
        model = random_model(family, config, seed)
        fix_rope(model, config, max_model_len)
        expected, margin = reference(model, seed)
        varied = all(len(set(expected[f"greedy_{i}"])) >= 6 for i in range(len(PROMPT_LENGTHS)))
        if margin > LEAST_MARGIN and varied:
            return seed, model, expected
    raise RuntimeError(f"No seed gives {family} clear greedy tokens; widen its weights.")


def random_model(family: str, config: Any, seed: int) -> Any:
    torch.manual_seed(seed)
    model = getattr(transformers, f"{family}ForCausalLM")._from_config(
        config, attn_implementation="eager", dtype=torch.float32
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 1.0 if "embed" in name else 0.25)
            else:
                parameter.normal_(1 if name.endswith("weight") else 0, 0.3)
    return model.eval()


def fix_rope(model: Any, config: Any, max_model_len: int | None) -> None:
    rotary = getattr(model.model, "rotary_emb", None)
    if rotary is None or rotary.rope_type not in ("dynamic", "longrope"):
        return
    init = ROPE_INIT_FUNCTIONS[rotary.rope_type]
    inv_freq, rotary.attention_scaling = init(config, "cpu", seq_len=max_model_len)
    rotary.inv_freq.copy_(inv_freq)
    rotary.rope_type = "default"


@torch.no_grad()
def reference(model: Any, seed: int) -> tuple[dict[str, np.ndarray], float]:
    rng = np.random.default_rng(seed)
    expected, margin = {}, np.inf
    for i, length in enumerate(PROMPT_LENGTHS):
        prompt = rng.integers(0, model.config.vocab_size, length)
        tokens = torch.tensor(prompt)[None]
        for step in range(NEW_TOKENS):
            logits = model(tokens, use_cache=False).logits[0]
            if step == 0:
                expected[f"logits_{i}"] = logits.numpy()
            best = logits[-1].topk(2).values
            margin = min(margin, float(best[0] - best[1]))
            tokens = torch.cat([tokens, logits[-1].argmax()[None, None]], 1)
        expected[f"prompt_{i}"] = prompt.astype(np.int32)
        expected[f"greedy_{i}"] = tokens[0, length:].numpy().astype(np.int32)
    return expected, margin


def write(folder: Path, name: str, config: Any, model: Any, expected: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tied = config.tie_word_embeddings
    tensors = {
        tensor: value.contiguous()
        for tensor, value in model.state_dict().items()
        if not (tied and tensor == "lm_head.weight")
    }
    tensors = RENAMED.get(name, dict)(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    fields = config.to_diff_dict() | {"architectures": [type(model).__name__]}
    fields = old_style(fields) if name in OLD_STYLE else fields | {"dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
    np.savez_compressed(folder / "expected.npz", **expected)


def old_style(fields: dict[str, Any]) -> dict[str, Any]:
    rope = dict(fields.pop("rope_parameters"))
    fields["rope_theta"] = rope.pop("rope_theta")
    fields["rope_scaling"] = {"type": rope.pop("rope_type"), **rope}
    if fields["rope_scaling"]["type"] == "default":
        fields["rope_scaling"] = None
    del fields["dtype"]
    return fields | {"torch_dtype": "float32"}


if __name__ == "__main__":
    main()
