"""The demo model's shape, and its folder in Hugging Face layout."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import safetensors.flax
from flax import nnx
from render import SPECIAL_TOKENS, STOP_TOKENS
from tokenizer import CONTEXT, VOCAB_SIZE

from quire.models import functional
from quire.models.llama import Llama, LlamaConfig

Params = dict[str, jax.Array]

STOP_IDS = [SPECIAL_TOKENS.index(token) for token in STOP_TOKENS]


def hf_config(hidden: int = 192, layers: int = 6, intermediate: int = 448) -> dict[str, Any]:
    """The contents of `config.json`; heads have 32 dimensions, three query heads to a KV head."""
    heads = hidden // 32
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // 3),
        "head_dim": 32,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": None,
        "eos_token_id": STOP_IDS,
        "pad_token_id": SPECIAL_TOKENS.index("<|endoftext|>"),
        "dtype": "bfloat16",
    }


def generation_config() -> dict[str, Any]:
    """The contents of `generation_config.json`."""
    return {"eos_token_id": STOP_IDS, "pad_token_id": STOP_IDS[0], "do_sample": False}


def definition(hf: dict[str, Any]) -> tuple[nnx.GraphDef[Any], LlamaConfig]:
    """The graph definition of the model and its config."""
    config = LlamaConfig.from_hf(hf)
    return functional.abstract(Llama, config, jnp.bfloat16)[0], config


def save(folder: Path, hf: dict[str, Any], params: Params) -> None:
    """Writes the model into `folder`, its weights in bfloat16 under Hugging Face's names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("config", hf), ("generation_config", generation_config())):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    tensors = {}
    for piece in Llama.checkpoint_map(LlamaConfig.from_hf(hf)).pieces:
        value = params[piece.param][piece.index].astype(jnp.bfloat16)
        tensors[piece.tensor] = value.reshape(-1, value.shape[-1]) if value.ndim > 1 else value
    path = folder / "model.safetensors"
    safetensors.flax.save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)


def load(folder: Path) -> tuple[dict[str, Any], Params]:
    """The config and the weights that `save` wrote."""
    hf = json.loads((folder / "config.json").read_text())
    config = LlamaConfig.from_hf(hf)
    shapes = functional.abstract(Llama, config, jnp.bfloat16)[1]
    params = {name: jnp.zeros(shape.shape, shape.dtype) for name, shape in shapes.items()}
    tensors = safetensors.flax.load_file(folder / "model.safetensors")
    for piece in Llama.checkpoint_map(config).pieces:
        part = params[piece.param][piece.index]
        value = tensors[piece.tensor].reshape(part.shape)
        params[piece.param] = params[piece.param].at[piece.index].set(value)
    return hf, params
