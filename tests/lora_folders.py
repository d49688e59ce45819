"""Adapters as PEFT saves them, made up for a model."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

RANK = 4
LAYERS = {"LlamaForCausalLM": "model.layers", "OPTForCausalLM": "model.decoder.layers"}


def lora_folder(folder: Path, model: Path, seed: int = 0) -> Path:
    """An adapter of the queries of the model in a folder; each seed changes the answers its way."""
    config = json.loads((model / "config.json").read_text())
    width, heads = config["hidden_size"], config["num_attention_heads"]
    out = heads * config.get("head_dim", width // heads)
    random = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for layer in range(config["num_hidden_layers"]):
        module = f"{LAYERS[config['architectures'][0]]}.{layer}.self_attn.q_proj"
        for part, shape in (("lora_A", (RANK, width)), ("lora_B", (out, RANK))):
            name = f"base_model.model.{module}.{part}.weight"
            tensors[name] = random.standard_normal(shape, np.float32)
    fields = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": ["q_proj"]}
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder
