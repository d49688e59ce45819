"""Adapters as PEFT saves them, made up for a model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

RANK = 4
LAYERS = {"LlamaForCausalLM": "model.layers", "OPTForCausalLM": "model.decoder.layers"}


def lora_folder(
    folder: Path, model: Path, seed: int = 0, *, all_linear: bool = False, scale: float = 1.0
) -> Path:
    """An adapter for the model in a folder; each seed changes the answers its own way.

    It is of the queries, or of all linear layers of a Llama.
    """
    config = json.loads((model / "config.json").read_text())
    sizes = (
        _sizes(config) if all_linear else {"self_attn.q_proj": _sizes(config)["self_attn.q_proj"]}
    )
    random = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for layer in range(config["num_hidden_layers"]):
        for end, (width, out) in sizes.items():
            module = f"{LAYERS[config['architectures'][0]]}.{layer}.{end}"
            for part, shape in (("lora_A", (RANK, width)), ("lora_B", (out, RANK))):
                name = f"base_model.model.{module}.{part}.weight"
                tensors[name] = scale * random.standard_normal(shape, np.float32)
    targets = sorted(end.rpartition(".")[2] for end in sizes)
    folder.mkdir(parents=True)
    return save_adapter(folder, tensors, RANK, targets)


def save_adapter(
    folder: Path, tensors: dict[str, np.ndarray], rank: int, targets: list[str]
) -> Path:
    """Writes the two files of an adapter whose alpha is its rank."""
    fields = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": targets}
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def _sizes(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Width and output of a layer's modules."""
    width, heads = config["hidden_size"], config["num_attention_heads"]
    head = config.get("head_dim", width // heads)
    inner = config.get("intermediate_size") or config["ffn_dim"]
    kv = head * config.get("num_key_value_heads", heads)
    return {
        "self_attn.q_proj": (width, heads * head),
        "self_attn.k_proj": (width, kv),
        "self_attn.v_proj": (width, kv),
        "self_attn.o_proj": (heads * head, width),
        "mlp.gate_proj": (width, inner),
        "mlp.up_proj": (width, inner),
        "mlp.down_proj": (inner, width),
    }
