"""The fixture models as adapters see them, the fixture adapters, and small ones made by hand."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quire.engine.checkpoint.loader import load_params
from quire.engine.checkpoint.safetensors_file import open_safetensors
from quire.lora.adapter import Adapter
from quire.lora.mapping import BaseModel, describe
from quire.models import functional, registry
from quire.models.causal import causal_logits

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"


@dataclasses.dataclass(frozen=True)
class ReferenceModel:
    """A fixture checkpoint as the project loads it."""

    architecture: Any
    config: Any
    params: dict[str, jax.Array]
    base: BaseModel

    def logits(self, params: dict[str, Any], prompt: np.ndarray) -> np.ndarray:
        """Of every token, [T, V]; with params of an untied head the model is taken as untied."""
        config = self.config
        if config.tie_embeddings and "head.weight" in params:
            config = dataclasses.replace(config, tie_embeddings=False)
        graphdef, _, _ = functional.abstract(self.architecture, config, jnp.float32)
        model = functional.bind(graphdef, params)
        return np.asarray(causal_logits(model, jnp.asarray(prompt)[None])[0])


@dataclasses.dataclass(frozen=True)
class ReferenceAdapter:
    """The files of a fixture adapter, and what PEFT computes with it."""

    fields: dict[str, Any]
    tensors: dict[str, np.ndarray]
    model: str
    prompt: np.ndarray
    logits: np.ndarray


@functools.cache
def load_model(name: str) -> ReferenceModel:
    folder = FIXTURES / "models" / name
    hf = json.loads((folder / "config.json").read_text())
    architecture = registry.resolve(hf)
    config = architecture.config_class.from_hf(hf)
    _, shapes, _ = functional.abstract(architecture, config, jnp.float32)
    cmap = architecture.checkpoint_map(config)
    params = load_params(folder, shapes, cmap, progress=False)
    base = describe(
        f"fixtures/{name}",
        cmap.pieces,
        params,
        canonical=cmap.canonical,
        tied=config.tie_embeddings,
    )
    return ReferenceModel(architecture, config, params, base)


@functools.cache
def load_adapter(name: str) -> ReferenceAdapter:
    folder = FIXTURES / "lora" / name
    stored = open_safetensors(folder / "adapter_model.safetensors")
    expected = np.load(folder / "expected.npz")
    return ReferenceAdapter(
        json.loads((folder / "adapter_config.json").read_text()),
        {name: tensor.array for name, tensor in stored.items()},
        str(expected["model"]),
        expected["prompt"],
        expected["logits"],
    )


def contents(adapter: Adapter) -> dict[str, list[tuple[Any, ...]]]:
    """All that an adapter does, to compare."""
    return {
        param: [(part.index, part.a.tolist(), part.b.tolist()) for part in parts]
        for param, parts in adapter.parts.items()
    }


@pytest.fixture
def reference_model() -> Callable[[str], ReferenceModel]:
    return load_model


@pytest.fixture
def reference_adapter() -> Callable[[str], ReferenceAdapter]:
    return load_adapter
