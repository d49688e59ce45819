"""Where adapters lie on the device, and how one gets there: stacked arrays beside the weights."""

import dataclasses
import functools
import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from ..lora.adapter import Adapter
from ..lora.mapping import EMBED, HEAD, BaseModel, describe
from ..lora.request import LoRARequest
from ..models import functional, low_rank, shards
from ..models.checkpoint_map import Piece
from ..models.config import TextConfig
from ..models.features import is_in_tower
from ..models.layers import Axes
from .mesh import Specs, device_bytes, num_devices, specs_of

Arrays = dict[str, Array]
"""By dotted path, as the parameters of a model that `low_rank.attach` was called with."""


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedAdapter:
    """An adapter on the host, ready for any slot."""

    request: LoRARequest
    digest: str
    """sha256 of `packed`: equal for equal effect, whatever the files look like."""
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
    copies: int
    """Of each KV head that it holds. Packed arrays have the first alone."""

    def sizes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of a and b in one slot, as `low_rank.written` takes them."""
        *out, in_size = self.shape
        return (self.number, rank, in_size), (*out, rank)

    def projections(self, index: Any) -> set[int]:
        """Which of its projections the region at `index` belongs to."""
        if self.number == 1:
            return {0}
        numbers = self.parts.over(self.shape[:-1])[index]
        return set(numbers[tuple(slice(None) if step else 0 for step in numbers.strides)].flat)

    def own(self, a: Array, b: Array, devices: int) -> tuple[Array, Array]:
        """What lies on this device, of packed arrays."""
        if self.copies > 1:
            b = shards.with_copies(shards.without_copies(b, self.copies), self.copies)
        a_axes, b_axes = ("parts", "rank", self.axes[-1]), (*self.axes[:-1], "rank")
        return (
            shards.own_part(a, shards.cut_axis(a_axes, a.shape, devices), devices),
            shards.own_part(b, shards.cut_axis(b_axes, b.shape, devices), devices),
        )

    @functools.cached_property
    def parts(self) -> low_rank.Parts:
        return low_rank.parts_of(self.shape, self.axes)

    @functools.cached_property
    def number(self) -> int:
        """Of its projections."""
        return self.parts.number


class _Copy(NamedTuple):
    """What makes `target` be `source` times `scale`."""

    place: tuple[str, int]
    """Which copy it is of a layer, the same in all layers."""
    source: np.ndarray
    target: np.ndarray
    scale: float

    @property
    def kind(self) -> tuple[object, ...]:
        """Equal for those that can be joined."""
        source = self.source
        form = (source.dtype, source.shape, source.strides, self.target.strides)
        return self.place, self.scale, _owner(source), *form

    def distance(self, other: "_Copy") -> tuple[int, int]:
        """In bytes, from the arrays of another to these."""
        return (
            _address(self.source) - _address(other.source),
            _address(self.target) - _address(other.target),
        )

    def run(self) -> None:
        """The product is rounded from float32, as in `merged`."""
        if self.scale == 1:
            np.copyto(self.target, self.source, casting="unsafe")
        else:
            scale, target = np.float32(self.scale), self.target
            np.multiply(self.source, scale, out=target, dtype=np.float32, casting="unsafe")


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
    mesh: Mesh | None
    specs: Specs
    """How the stacked arrays lie on it: cut as their weights are."""
    weights: dict[str, _Weight]
    """By the dotted name of the parameter."""
    base: BaseModel
    """Its parameters are shapes alone."""

    @property
    def nbytes(self) -> int:
        """Bytes on one device."""
        return device_bytes(self.shapes, self.specs, self.mesh)

    @property
    def devices(self) -> int:
        """That share the weights."""
        return num_devices(self.mesh)

    @property
    def packed(self) -> jax.ShapeDtypeStruct:
        """What `pack` gives: as much for each device, padded for that."""
        size = sum(math.prod(s) for w in self.weights.values() for s in w.sizes(self.rank))
        size += -size % self.devices
        return jax.ShapeDtypeStruct((size,), next(iter(self.shapes.values())).dtype)

    def pack(self, request: LoRARequest, adapter: Adapter) -> LoadedAdapter:
        """The adapter in the types and shapes of a slot. Each of its arrays is read once."""
        packed = np.zeros(self.packed.shape, self.packed.dtype)
        for copy in _joined(self._copies(adapter, packed)):
            copy.run()
        digest = hashlib.sha256(packed.view(np.uint8)).hexdigest()
        return LoadedAdapter(request, digest, packed)

    def new_arrays(self) -> Arrays:
        """Empty slots, made on the device."""
        return {path: jnp.zeros(shape.shape, shape.dtype) for path, shape in self.shapes.items()}

    def write(self, arrays: Arrays, slot: Int[Array, ""], packed: Float[Array, " N"]) -> Arrays:
        """The arrays with a packed adapter in `slot`.

        Of several devices each is given some of it, so that it leaves the host once, and takes its
        own parts of what all were given.
        """
        written = dict(arrays)
        if self.devices > 1:
            packed = shards.gathered(packed)
        for _, weight, a, b in self._split(packed):
            a, b = weight.own(a, b, self.devices)
            names = f"{weight.path}.a", f"{weight.path}.b"
            old = [arrays[name] for name in names]
            pair = low_rank.written(old[0], old[1], slot, a, b, weight.axes)
            written |= dict(zip(names, pair, strict=True))
        return written

    def _split(self, packed: Any) -> Iterator[tuple[str, _Weight, Any, Any]]:
        """The a and b of each weight, by the name of the parameter; of a numpy array, views."""
        start = 0
        for name, weight in self.weights.items():
            pair: list[Any] = []
            for shape in weight.sizes(self.rank):
                end = start + math.prod(shape)
                pair.append(packed[start:end].reshape(shape))
                start = end
            yield name, weight, pair[0], pair[1]

    def _copies(self, adapter: Adapter, packed: np.ndarray) -> Iterator[_Copy]:
        """What fills `packed`, which is zero."""
        for name, weight, a, b in self._split(packed):
            targets: list[tuple[np.ndarray, np.ndarray, float]] = []
            for part in adapter.parts.get(name, ()):
                used = len(part.down)
                for number in weight.projections(part.index):
                    targets.append((part.down, a[number, :used], 1))
                targets.append((part.up, b[part.index][..., :used], part.scale))
            kind = re.sub(r"\d+", "", name)
            yield from (_Copy((kind, n), *target) for n, target in enumerate(targets))


def _joined(copies: Iterable[_Copy]) -> Iterator[_Copy]:
    """The same in few copies: where layers lie at equal distances, one is for all of them.

    Each gives Python's lock away, and while a step runs it is long until it comes back.
    """
    kinds: defaultdict[object, list[_Copy]] = defaultdict(list)
    for copy in copies:
        kinds[copy.kind].append(copy)
    for alike in kinds.values():
        yield from map(_join, _runs(alike))


def _runs(copies: list[_Copy]) -> Iterator[list[_Copy]]:
    """The copies in their order, those together that lie at equal distances."""
    run: list[_Copy] = []
    for copy in copies:
        if len(run) > 1 and copy.distance(run[-1]) != run[1].distance(run[0]):
            yield run
            run = []
        run.append(copy)
    yield run


def _join(run: list[_Copy]) -> _Copy:
    """A run as one copy, of arrays with an axis more."""
    first = run[0]
    if len(run) == 1:
        return first
    source, target = (
        np.lib.stride_tricks.as_strided(array, (len(run), *array.shape), (step, *array.strides))
        for array, step in zip((first.source, first.target), run[1].distance(first), strict=True)
    )
    return first._replace(source=source, target=target)


def _owner(array: np.ndarray) -> int:
    """What the memory of an array belongs to: arrays of one owner may be looked at as one."""
    owner: Any = array
    while isinstance(owner, np.ndarray) and owner.base is not None:
        owner = owner.base
    return id(owner)


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def adapter_spec(
    name: str,
    architecture: type[Any],
    config: TextConfig,
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    axes: Mapping[str, Axes],
    *,
    slots: int,
    rank: int,
    mesh: Mesh | None = None,
) -> AdapterSpec:
    """The spec of a model with so many slots.

    Args:
        name: of the model, for warnings about adapters that were made for another.
        shapes, axes: of its parameters, as `functional.abstract` gives them.
        mesh: the devices that share it.
    """
    dtype = shapes[EMBED].dtype
    checkpoint_map = architecture.checkpoint_map(config)
    pieces = [p for p in checkpoint_map.pieces if not is_in_tower(architecture, p.param)]
    base = describe(
        name,
        _first_copies(pieces),
        shapes,
        canonical=checkpoint_map.canonical,
        tied=HEAD not in shapes,
    )
    names = sorted({slot.param for module in base.modules.values() for slot in module.slots})
    attach = functools.partial(low_rank.attach, names=names, slots=slots, rank=rank, dtype=dtype)
    graphdef, all_shapes, all_axes = functional.abstract(architecture, config, dtype, attach)
    added = {path: shape for path, shape in all_shapes.items() if path not in shapes}
    weights: dict[str, _Weight] = {}
    for param in names:
        stored = param if param in shapes else EMBED
        copies = config.kv_copies if shards.has_copies(axes[stored]) else 1
        path, shape = low_rank.path_of(param), shapes[stored].shape
        weights[param] = _Weight(path, shape, axes[stored], copies)
    return AdapterSpec(
        slots=slots,
        rank=rank,
        graphdef=graphdef,
        shapes=added,
        mesh=mesh,
        specs=specs_of(all_axes, added, mesh),
        weights=weights,
        base=base,
    )


def _first_copies(pieces: Iterable[Piece]) -> list[Piece]:
    """The pieces but those that fill further copies of KV heads from the same rows."""
    found: dict[object, Piece] = {}
    for piece in pieces:
        found.setdefault((piece.tensor, piece.param, str(piece.rows)), piece)
    return list(found.values())
