"""The engine the benchmarks time: Llama-3.1's shapes, bfloat16, random weights, no tokenizer."""

import contextlib
import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import quire
from quire import Engine
from quire.engine.buckets import Buckets, Program, Variant

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
SHAPES: dict[str, dict[str, int]] = {
    "8b": {},
    "70b": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
    },
}
"""What differs from `CONFIG` in the shape of a size."""
OPTIONS: dict[str, Any] = {
    "load_format": "dummy",
    "skip_tokenizer_init": True,
    "max_model_len": 10240,
    "max_num_seqs": 512,
    "gpu_memory_utilization": 0.85,
}
"""Those the peer was timed with."""


def make_folder(**changes: Any) -> Path:
    """A model folder with nothing but the config, some of its entries changed."""
    folder = Path(tempfile.mkdtemp())
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    return folder


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of as many made-up words as the model has tokens: bytes, and ` w256` and on."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [
        *alphabet,
        *(f"\u0120w{number}" for number in range(len(alphabet), CONFIG["vocab_size"])),
    ]
    model = models.BPE({word: number for number, word in enumerate(words)}, [])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    described = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))


def make_engine(shape: str = "8b", **options: Any) -> Engine:
    """The engine; `options` go over those of the peer."""
    return Engine(make_folder(**SHAPES[shape]), **(OPTIONS | options))


def make_greedy_engine(shape: str = "8b", **options: Any) -> Engine:
    """The same, with no program compiled ahead but the greedy ones."""
    with only_greedy_ahead():
        return make_engine(shape, **options)


@contextlib.contextmanager
def only_greedy_ahead() -> Iterator[None]:
    """Engines made meanwhile compile their greedy programs ahead, and others only when needed."""
    every = Buckets.programs

    def greedy(buckets: Buckets) -> list[Program]:
        return [program for program in every(buckets) if program.variant == Variant.GREEDY]

    with mock.patch.object(Buckets, "programs", greedy):
        yield


def report(figures: dict[str, Any], output: Path | None) -> None:
    """Prints a JSON line of figures with their conditions, and appends it to a file if given."""
    line = json.dumps(figures | conditions())
    print(line, flush=True)
    if output:
        with output.open("a") as file:
            file.write(line + "\n")


def conditions() -> dict[str, str]:
    """What a figure depends on beside the code: for the JSON lines of results."""
    import jax

    device = jax.devices()[0]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "device": device.device_kind,
        "jax": jax.__version__,
        "quire": quire.__version__,
        "commit": commit or "unknown",
    }
