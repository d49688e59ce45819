"""Adapters packed for a slot, wherever their tensors lie and whatever their types."""

import json
import math
import random
from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from quire.engine.adapter_arrays import AdapterSpec, LoadedAdapter, _joined, adapter_spec
from quire.lora.adapter import Adapter
from quire.lora.config import read_config
from quire.lora.reader import read_adapter
from quire.lora.request import LoRARequest
from quire.models import functional
from tests.lora.conftest import FIXTURES, load_adapter, load_model
from tests.stacked import stacked

NAMES = [path.name for path in sorted((FIXTURES / "lora").iterdir())]
LAYERS = 12
RANK = 8
REQUEST = LoRARequest("sql", 1, "/sql")

Tensors = dict[str, np.ndarray]


def spec_of(model: str, dtype: Any = jnp.bfloat16, **fields: Any) -> AdapterSpec:
    """Two slots of rank 8 in a fixture model, or in one with other `fields` in its config."""
    architecture = load_model(model).architecture
    hf = json.loads((FIXTURES / "models" / model / "config.json").read_text())
    config = architecture.config_class.from_hf(hf | fields)
    _, shapes, axes = functional.abstract(architecture, config, dtype)
    return adapter_spec(model, architecture, config, shapes, axes, slots=2, rank=RANK)


@pytest.fixture(scope="module")
def deep() -> AdapterSpec:
    """A model of more than ten layers: by name they are in another order than by number."""
    return spec_of("llama2", num_hidden_layers=LAYERS)


def tensors_of(spec: AdapterSpec, dtype: Any = np.float32, rank: int = 4) -> Tensors:
    """An adapter of all linear layers, by name as safetensors files have them."""
    rng = np.random.default_rng(0)
    tensors: Tensors = {}
    for module in spec.base.modules.values():
        if module.kind == "linear":
            name = f"base_model.model.{module.name}"
            for side, shape in (("A", (rank, module.in_size)), ("B", (module.out_size, rank))):
                tensors[f"{name}.lora_{side}.weight"] = rng.normal(size=shape).astype(dtype)
    return dict(sorted(tensors.items()))


def read(spec: AdapterSpec, tensors: Tensors, **fields: Any) -> Adapter:
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "target_modules": None, **fields}
    return read_adapter("sql", read_config(config), tensors, spec.base, max_rank=RANK)


def pack(spec: AdapterSpec, tensors: Tensors, **fields: Any) -> LoadedAdapter:
    return spec.pack(REQUEST, read(spec, tensors, **fields))


def packed_plainly(spec: AdapterSpec, adapter: Adapter) -> np.ndarray:
    """What packing gives, one weight after the other."""
    arrays = [
        array.reshape(-1)
        for name, weight in spec.weights.items()
        for array in stacked(
            adapter.parts.get(name, ()), weight.shape, weight.axes, RANK, spec.packed.dtype
        )
    ]
    return np.concatenate(arrays)


def laid(tensors: Tensors, names: Iterable[str]) -> Tensors:
    """The same in one buffer, in this order."""
    size = sum(array.nbytes for array in tensors.values())
    buffer, start = np.empty(size, np.uint8), 0
    views: Tensors = {}
    for name in names:
        array = tensors[name]
        views[name] = np.ndarray(array.shape, array.dtype, buffer, start)
        views[name][...] = array
        start += array.nbytes
    assert start == size
    return views


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", NAMES)
def test_all_is_in_its_place(name: str, dtype: Any) -> None:
    fixture = load_adapter(name)
    spec, base = spec_of(fixture.model, dtype), load_model(fixture.model).base
    config = read_config(fixture.fields, name)
    adapter = read_adapter(name, config, fixture.tensors, base, max_rank=RANK)
    packed = spec.pack(REQUEST, adapter).packed
    assert packed.dtype == dtype
    assert packed.any()
    assert np.array_equal(packed, packed_plainly(spec, adapter))


@pytest.mark.parametrize("alpha", [4, 6])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_every_type_is_rounded_once_from_float32(dtype: Any, alpha: int, deep: AdapterSpec) -> None:
    adapter = read(deep, tensors_of(deep, dtype), lora_alpha=alpha)
    assert np.array_equal(deep.pack(REQUEST, adapter).packed, packed_plainly(deep, adapter))


def by_number(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: int(name.split(".")[4]))


def shuffled(names: Iterable[str]) -> list[str]:
    return random.Random(0).sample(list(names), len(list(names)))


@pytest.mark.parametrize("order", [sorted, by_number, shuffled, reversed])
def test_where_tensors_lie_says_nothing(
    order: Callable[[Iterable[str]], Iterable[str]], deep: AdapterSpec
) -> None:
    tensors = tensors_of(deep)
    expected = pack(deep, tensors)
    found = pack(deep, laid(tensors, order(list(tensors))))
    assert np.array_equal(found.packed, expected.packed)
    assert found.digest == expected.digest


def test_one_copy_is_for_all_layers(deep: AdapterSpec) -> None:
    tensors = tensors_of(deep)
    packed = np.zeros(deep.packed.shape, deep.packed.dtype)

    def copies(tensors: Tensors) -> int:
        return len(list(_joined(deep._copies(read(deep, tensors), packed))))

    assert copies(laid(tensors, tensors)) == len(tensors) / LAYERS
    assert copies(laid(tensors, by_number(tensors))) < len(tensors) / 2


def test_arrays_of_several_owners_are_never_looked_at_as_one(deep: AdapterSpec) -> None:
    tensors = tensors_of(deep)
    packed = np.zeros(deep.packed.shape, deep.packed.dtype)
    copies = list(_joined(deep._copies(read(deep, tensors), packed)))
    assert len(copies) == len(tensors)
    assert all(copy.source.size <= max(a.size for a in tensors.values()) for copy in copies)


def test_nothing_refers_to_the_tensors_afterwards(deep: AdapterSpec) -> None:
    tensors = tensors_of(deep)
    loaded = pack(deep, tensors)
    for array in tensors.values():
        array[:] = 0
    assert loaded.packed.any()
    assert loaded.packed.base is None
    assert loaded.nbytes == math.prod(deep.packed.shape) * 2


def test_digest_is_of_the_effect(deep: AdapterSpec) -> None:
    tensors = tensors_of(deep)
    plain = pack(deep, tensors)
    same = [
        pack(deep, dict(reversed(tensors.items()))),
        pack(deep, {name: array.astype(np.float64) for name, array in tensors.items()}),
        pack(deep, {name: a * (1 + ("_B" in name)) for name, a in tensors.items()}, lora_alpha=3),
    ]
    assert {other.digest for other in same} == {plain.digest}
    up = next(name for name in tensors if "layers.7.self_attn.q_proj.lora_B" in name)
    k = [name for name in tensors if "layers.7.self_attn.k_proj" in name]
    v = [name.replace("k_proj", "v_proj") for name in k]
    swapped = dict(zip(k + v, v + k, strict=True))
    others = [
        pack(deep, tensors | {up: -tensors[up]}),
        pack(deep, tensors, lora_alpha=3),
        pack(deep, tensors, alpha_pattern={r"layers\.7\.mlp\.up_proj": 3}),
        pack(deep, {swapped.get(name, name): array for name, array in tensors.items()}),
    ]
    assert len({plain.digest, *(other.digest for other in others)}) == 5
