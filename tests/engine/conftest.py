"""A tiny model folder for tests of the engine: random weights, a real tokenizer."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from quire import Engine

TOKENIZER = Path(__file__).parents[1] / "fixtures" / "tokenizers" / "byte_level"
LAYERS, WIDTH, HIDDEN, HEADS, KV_HEADS = 2, 32, 64, 4, 2
SMALL = {"max_num_seqs": 8, "max_num_batched_tokens": 64, "kv_cache_memory_bytes": 2**20}
"""Options that compile little."""


def write_model(folder: Path, **config: object) -> Path:
    """A Llama folder whose weights are large enough that its distributions are not flat."""
    shutil.copytree(TOKENIZER, folder, dirs_exist_ok=True)
    vocab = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]) + 8
    fields = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": vocab,
        "hidden_size": WIDTH,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "dtype": "float32",
        "eos_token_id": 0,
        **config,
    }
    (folder / "config.json").write_text(json.dumps(fields))
    save_file(_weights(vocab), folder / "model.safetensors")
    return folder


def _weights(vocab: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    size = WIDTH // HEADS
    shapes = {"model.embed_tokens.weight": (vocab, WIDTH), "model.norm.weight": (WIDTH,)}
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        shapes |= {
            f"{layer}.input_layernorm.weight": (WIDTH,),
            f"{layer}.post_attention_layernorm.weight": (WIDTH,),
            f"{layer}.self_attn.q_proj.weight": (WIDTH, WIDTH),
            f"{layer}.self_attn.k_proj.weight": (KV_HEADS * size, WIDTH),
            f"{layer}.self_attn.v_proj.weight": (KV_HEADS * size, WIDTH),
            f"{layer}.self_attn.o_proj.weight": (WIDTH, WIDTH),
            f"{layer}.mlp.gate_proj.weight": (HIDDEN, WIDTH),
            f"{layer}.mlp.up_proj.weight": (HIDDEN, WIDTH),
            f"{layer}.mlp.down_proj.weight": (WIDTH, HIDDEN),
        }
    return {
        name: (rng.normal(size=shape) * 0.3 + ("norm" in name)).astype(np.float32)
        for name, shape in shapes.items()
    }


def poison_pool(engine: Engine) -> None:
    """Fills every page, the null page included, with NaN."""
    runner = engine._running.replicas[0].runner
    cache = jax.tree.map(lambda pool: jnp.full_like(pool, jnp.nan), runner.executor.state.cache)
    runner.executor.state = dataclasses.replace(runner.executor.state, cache=cache)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def engine(model_folder: Path) -> Iterator[Engine]:
    with Engine(model_folder, enforce_eager=True, use_tqdm_on_load=False, **SMALL) as engine:
        yield engine
