"""Where adapters lie on the device, and how one gets there: stacked arrays beside the weights."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..lora.adapter import Adapter
from ..lora.mapping import EMBED, HEAD, BaseModel, describe
from ..lora.request import LoRARequest
from ..models import functional, low_rank
from ..models.config import TextConfig
from ..models.layers import Axes

Arrays = dict[str, Array]
"""By dotted path, as the parameters of a model that `low_rank.attach` was called with."""


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedAdapter:
    """An adapter on the host, ready for any slot."""

    request: LoRARequest
    digest: str
    """Equal for equal updates, whatever they are called."""
    packed: np.ndarray
    """All arrays of one slot, one after the other: one transfer to the device."""

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes


@dataclasses.dataclass(frozen=True)
class _Weight:
    """A weight that adapters may change."""

    path: str
    """Of its `LowRank`."""
    shape: tuple[int, ...]
    axes: Axes

    def sizes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of a and b in one slot, as `low_rank.stacked` makes them."""
        *out, in_size = self.shape
        return (low_rank.parts_of(self.shape, self.axes).number, rank, in_size), (*out, rank)


@dataclasses.dataclass(frozen=True, eq=False)
class AdapterSpec:
    """A model with room for adapters: the definition, without any arrays."""

    slots: int
    rank: int
    """Of every slot; adapters of a lower one are padded."""
    graphdef: Any
    """The model's, with a `LowRank` beside each weight that can be adapted."""
    shapes: dict[str, jax.ShapeDtypeStruct]
    """Of the stacked arrays."""
    weights: dict[str, _Weight]
    """By the dotted name of the parameter."""
    base: BaseModel
    """Its parameters are shapes alone."""

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return sum(shape.size * shape.dtype.itemsize for shape in self.shapes.values())

    @property
    def packed(self) -> jax.ShapeDtypeStruct:
        """What `pack` gives."""
        sizes = [math.prod(s) for w in self.weights.values() for s in w.sizes(self.rank)]
        return jax.ShapeDtypeStruct((sum(sizes),), next(iter(self.shapes.values())).dtype)

    def pack(self, request: LoRARequest, adapter: Adapter) -> LoadedAdapter:
        """The adapter in the types and shapes of a slot."""
        packed = np.empty(self.packed.shape, self.packed.dtype)
        start = 0
        for name, weight in self.weights.items():
            updates = adapter.parts.get(name, ())
            shape, axes, dtype = weight.shape, weight.axes, packed.dtype
            for array in low_rank.stacked(updates, shape, axes, self.rank, dtype):
                packed[start : start + array.size] = array.reshape(-1)
                start += array.size
        return LoadedAdapter(request, adapter.digest, packed)

    def new_arrays(self) -> Arrays:
        """Empty slots, made on the device."""
        return {path: jnp.zeros(shape.shape, shape.dtype) for path, shape in self.shapes.items()}

    def write(self, arrays: Arrays, slot: Int[Array, ""], packed: Float[Array, " N"]) -> Arrays:
        """The arrays with a packed adapter in `slot`."""
        written, start = dict(arrays), 0
        for weight in self.weights.values():
            new: list[Array] = []
            for shape in weight.sizes(self.rank):
                end = start + math.prod(shape)
                new.append(packed[start:end].reshape(shape))
                start = end
            names = f"{weight.path}.a", f"{weight.path}.b"
            old = [arrays[name] for name in names]
            pair = low_rank.written(old[0], old[1], slot, new[0], new[1], weight.axes)
            written |= dict(zip(names, pair, strict=True))
        return written


def adapter_spec(
    name: str,
    architecture: type[Any],
    config: TextConfig,
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    axes: Mapping[str, Axes],
    *,
    slots: int,
    rank: int,
) -> AdapterSpec:
    """The spec of a model with so many slots.

    Args:
        name: of the model, for warnings about adapters that were made for another.
        shapes, axes: of its parameters, as `functional.abstract` gives them.
    """
    dtype = shapes[EMBED].dtype
    checkpoint_map = architecture.checkpoint_map(config)
    base = describe(
        name,
        checkpoint_map.pieces,
        shapes,
        canonical=checkpoint_map.canonical,
        tied=HEAD not in shapes,
    )
    names = sorted({slot.param for module in base.modules.values() for slot in module.slots})
    attach = functools.partial(low_rank.attach, names=names, slots=slots, rank=rank, dtype=dtype)
    graphdef, all_shapes, _ = functional.abstract(architecture, config, dtype, attach)
    weights: dict[str, _Weight] = {}
    for param in names:
        stored = param if param in shapes else EMBED
        weights[param] = _Weight(low_rank.path_of(param), shapes[stored].shape, axes[stored])
    return AdapterSpec(
        slots=slots,
        rank=rank,
        graphdef=graphdef,
        shapes={path: shape for path, shape in all_shapes.items() if path not in shapes},
        weights=weights,
        base=base,
    )
