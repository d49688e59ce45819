"""What one GPU of several holds of Llama 3.1's shapes: the table of docs/sizing.md.

    python scripts/sizing.py

The engine reckons, as at its start; no GPU is needed, no model is downloaded and nothing of the
weights is made. It is told that it runs on H200s, so that types, head size and pages of the KV pool
are those of a Hopper GPU. Prints a table in Markdown; GiB are 2^30 bytes, of one GPU each.
"""

import argparse
import dataclasses
import functools
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

from quire.engine import assembly, memory
from quire.engine.device_state import RunnerConfig
from quire.engine.model import ModelSpec, find_spec
from quire.engine.options import make_options
from quire.errors import MemoryBudgetError
from quire.models import functional, hopper

H200_BYTES = 150_109_880_320
"""Of one H200, as its driver tells them: 139.8 GiB."""
UTILIZATION = 0.92
GPUS = (1, 2, 4, 8, 16)
SEQUENCE = 8192
"""Tokens of the sequences that are counted."""
VOCABULARY = 128256

_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": VOCABULARY,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
SHAPES: dict[str, dict[str, int]] = {
    name: dict(
        zip(
            ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
            sizes,
            strict=True,
        )
    )
    for name, sizes in (
        ("8B", (4096, 14336, 32, 32)),
        ("70B", (8192, 28672, 80, 64)),
        ("405B", (16384, 53248, 126, 128)),
    )
}
"""Llama 3.1's, as their `config.json` has them."""
HEADER = (
    "model",
    "GPUs",
    "weights, GiB",
    "temporaries, GiB",
    "KV pool, GiB",
    "KV of a token, KiB",
    "tokens",
    f"sequences of {SEQUENCE:,}",
)


@dataclasses.dataclass(frozen=True)
class H200:
    """Stands where JAX has a GPU, for what the engine asks of one."""

    id: int
    limit: int
    """Bytes that JAX's allocator has."""
    platform: str = "gpu"
    device_kind: str = "NVIDIA H200"
    compute_capability: str = "9.0"
    process_index: int = 0

    def memory_stats(self) -> dict[str, int]:
        return {"bytes_limit": self.limit, "bytes_in_use": 0}


@dataclasses.dataclass(frozen=True)
class Share:
    """What one of several GPUs that share a model holds. Bytes, unless it says tokens."""

    weights: int
    temporaries: int
    token: int
    """K and V of one token."""
    tokens: int | None
    """Of context, the null page left out; None where the model does not fit."""


_abstract = functools.cache(functional.abstract)
"""Of a model's config: the same for most numbers of GPUs, and slow for many layers."""


@contextmanager
def on_h200s(count: int) -> Iterator[None]:
    """Makes the engine plan for `count` H200s, by its own rules for Hopper GPUs."""
    with mock.patch.dict(os.environ):
        os.environ.pop(memory._FRACTION, None)
        with mock.patch("jax._src.xla_bridge.backends_are_initialized", return_value=False):
            memory.reserve_gpu_memory(UTILIZATION)  # as in a process that is new
        gpus = [
            H200(i, int(H200_BYTES * float(os.environ[memory._FRACTION]))) for i in range(count)
        ]
        with (
            mock.patch.object(jax, "default_backend", return_value="gpu"),
            mock.patch.object(jax, "devices", return_value=gpus),
            mock.patch.object(jax, "process_count", return_value=1),
            mock.patch.object(jax, "process_index", return_value=0),
            mock.patch.object(hopper, "why_not", return_value=None),  # older JAX has no kernels
            mock.patch.object(functional, "abstract", _abstract),
        ):
            yield


def share(model: str, gpus: int) -> Share:
    """What each of so many GPUs holds of a shape of `SHAPES`, with the engine's defaults."""
    with tempfile.TemporaryDirectory() as folder, on_h200s(gpus):
        Path(folder, "config.json").write_text(json.dumps(_LLAMA | SHAPES[model]))
        options = make_options(
            folder,
            load_format="dummy",
            tensor_parallel_size=gpus,
            gpu_memory_utilization=UTILIZATION,
        )
        spec = find_spec(options)
        sizes, config = _sizes(spec, options)
        return Share(
            weights=spec.device_bytes,
            temporaries=memory.temporaries(spec, sizes),
            token=memory.page_bytes(spec, sizes) // sizes.page_size,
            tokens=None if config is None else (config.num_pages - 1) * config.page_size,
        )


def _sizes(spec: ModelSpec, options: Any) -> tuple[RunnerConfig, RunnerConfig | None]:
    """The engine's sizes before it counts pages, and after; None where they do not fit."""
    seen: list[RunnerConfig] = []

    def plan_pages(spec: ModelSpec, config: RunnerConfig, options: Any) -> int:
        seen.append(config)
        return memory.plan_pages(spec, config, options)

    with mock.patch.object(assembly, "plan_pages", plan_pages):
        try:
            planned = assembly._runner_config(spec, options)
        except MemoryBudgetError:
            planned = None
    return seen[0], planned


def row(model: str, gpus: int) -> tuple[str, ...]:
    """The cells of a row, those of `HEADER`."""
    held = share(model, gpus)
    weights, scratch = (f"{x / 2**30:.1f}" for x in (held.weights, held.temporaries))
    cells = (model, str(gpus), weights, scratch)
    token = f"{held.token / 2**10:g}"
    if held.tokens is None:
        return *cells, "does not fit", token, "", ""
    pool = f"{held.tokens * held.token / 2**30:.1f}"
    return *cells, pool, token, f"{held.tokens:,}", f"{held.tokens // SEQUENCE:,}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    print(markdown(HEADER, [row(model, gpus) for model in SHAPES for gpus in GPUS]))


if __name__ == "__main__":
    main()
