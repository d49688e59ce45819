"""The devices that share a model, and what lies where on them."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from ..errors import OptionError
from ..models.config import TextConfig
from ..models.shards import TENSOR, spec_of

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
DATA = "data"
"""The axis of a mesh along which there are replicas of a model."""
Specs = dict[str, PartitionSpec]
"""How weights lie on a mesh, by dotted path."""


def make_meshes(data: int, tensor: int, given: Any, config: TextConfig) -> tuple[Mesh | None, ...]:
    """The devices of each of `data` replicas of a model: the first `tensor`, the next, and so on,
    or those of a mesh that is `given`. None for a model on one device, unless it is given.

    Raises OptionError where there are not so many, the mesh is not fit, or the model cannot be cut.
    """
    if given is not None:
        meshes = _of_replicas(_checked(given, data, tensor))
        size = meshes[0].size
        _check_sizes(f"a mesh of {size} devices", size, config)
        return meshes
    _check_sizes(f"tensor_parallel_size={tensor}", tensor, config)
    if data == tensor == 1:
        return (None,)
    devices = jax.devices()
    if data * tensor > len(devices):
        asked, it = f"tensor_parallel_size={tensor}", "it"
        if data > 1:
            asked = f"data_parallel_size={data} and {asked} take {data * tensor} devices"
            it = "one of them"
        raise OptionError(
            f"{asked}, but JAX sees {len(devices)} {devices[0].platform} devices. Lower {it}, or "
            "make more devices visible."
        )
    return _meshes(np.array(devices[: data * tensor]).reshape(data, tensor))


def _of_replicas(mesh: Mesh) -> tuple[Mesh, ...]:
    """The devices of each replica; those of one that is alone keep their axes."""
    if TENSOR in mesh.shape and mesh.shape.get(DATA, 1) == 1:
        return (mesh,)
    rows = np.moveaxis(mesh.devices, mesh.axis_names.index(DATA), 0)
    return _meshes(rows.reshape(len(rows), -1))


def _meshes(rows: np.ndarray) -> tuple[Mesh, ...]:
    return tuple(Mesh(row, (TENSOR,)) for row in rows)


def _checked(given: Any, data: int, tensor: int) -> Mesh:
    """A mesh of a user's, whose axes may be of any type."""
    if not isinstance(given, Mesh):
        raise OptionError(
            f"mesh={given!r} is a {type(given).__name__}; it must be a jax.sharding.Mesh."
        )
    sizes = dict(given.shape)
    known = [sizes[axis] for axis in (DATA, TENSOR) if axis in sizes]
    if not known or math.prod(known) != given.size:
        raise OptionError(
            f"mesh has the axes {sizes}; it must have one named {TENSOR!r}, one named {DATA!r}, or "
            f"both, and others of size 1 alone. Give Mesh(devices, ({DATA!r}, {TENSOR!r}))."
        )
    for name, axis, asked in (
        ("data_parallel_size", DATA, data),
        ("tensor_parallel_size", TENSOR, tensor),
    ):
        if asked not in (1, sizes.get(axis, 1)):
            raise OptionError(
                f"{name}={asked}, but the mesh has {sizes.get(axis, 1)} devices along {axis!r}. "
                "Leave it out."
            )
    return Mesh(given.devices, given.axis_names)


def _check_sizes(asked: str, devices: int, config: TextConfig) -> None:
    if _shares_out(config, devices):
        return
    allowed = [n for n in range(1, config.num_heads + 1) if _shares_out(config, n)]
    raise OptionError(
        f"{asked} cannot share out the model's {config.num_heads} query heads, "
        f"{config.num_kv_heads} KV heads and {config.intermediate_size} columns of its MLP: "
        f"query heads and columns are divided, KV heads divided or copied. "
        f"It may be {', '.join(map(str, allowed))}."
    )


def _shares_out(config: TextConfig, devices: int) -> bool:
    fewer, more = sorted((config.num_kv_heads, devices))
    return not (config.num_heads % devices or config.intermediate_size % devices or more % fewer)


def num_devices(mesh: Mesh | None) -> int:
    """That share a model; one without a mesh."""
    return 1 if mesh is None else mesh.size


def devices_of(mesh: Mesh | None) -> list[jax.Device]:
    """The devices that share a model: without a mesh, the first of all."""
    return jax.devices()[:1] if mesh is None else list(mesh.devices.flat)


def joined(meshes: Sequence[Mesh]) -> Mesh:
    """The devices of all replicas."""
    return Mesh(np.array([devices_of(mesh) for mesh in meshes]), (DATA, TENSOR))


def shared_out(config: Any, mesh: Mesh | None) -> Any:
    """The config of the model on a mesh, with copies of KV heads where those are fewer."""
    devices = num_devices(mesh)
    copies = devices // config.num_kv_heads
    if copies <= 1:
        return config
    return dataclasses.replace(config, num_kv_heads=devices, kv_copies=copies)


def specs_of(
    axes: Mapping[str, tuple[str, ...]],
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    mesh: Mesh | None,
) -> Specs:
    """How each weight is cut. All are whole without a mesh, and those of a tower where the devices
    do not divide its heads."""
    devices = num_devices(mesh)
    uneven = {
        name.partition(".")[0]
        for name, shape in shapes.items()
        for axis, size in zip(axes[name], shape.shape, strict=True)
        if axis == "vision_heads" and size % devices
    }
    return {
        name: PartitionSpec()
        if name.partition(".")[0] in uneven
        else spec_of(axes[name], shape.shape, devices)
        for name, shape in shapes.items()
    }


def device_bytes(
    shapes: Mapping[str, jax.ShapeDtypeStruct], specs: Specs, mesh: Mesh | None
) -> int:
    """Of arrays on one device."""
    devices = num_devices(mesh)
    return sum(
        shape.size * shape.dtype.itemsize // (devices if TENSOR in specs[name] else 1)
        for name, shape in shapes.items()
    )


def shardings(specs: Any, mesh: Mesh) -> Any:
    """A tree of specs as one of shardings."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


def placed(shapes: T, specs: Any, mesh: Mesh | None) -> T:
    """A tree of shapes with how they lie on a mesh; a spec may be for a tree of shapes."""
    if mesh is None:
        return shapes

    def place(sharding: NamedSharding, part: Any) -> Any:
        return jax.tree.map(
            lambda shape: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding), part
        )

    return jax.tree.map(place, shardings(specs, mesh), shapes)


def put(array: Any, place: Sharding) -> jax.Array:
    """An array in its place: as it is where it lies there, as on one replica of several that it
    lies on, else on its way between the devices, past the host."""
    if not isinstance(array, jax.Array):
        return jax.device_put(array, place)
    if array.sharding.is_equivalent_to(place, array.ndim):
        return array
    lies, wanted = (s.devices_indices_map(array.shape) for s in (array.sharding, place))
    if wanted.items() <= lies.items():
        parts = {shard.device: shard.data for shard in array.addressable_shards}
        own = [parts[device] for device in wanted]
        return jax.make_array_from_single_device_arrays(array.shape, place, own)
    if list(lies) == list(wanted):  # here `device_put` would go through the host
        return jax.jit(_same, out_shardings=place)(array)
    return jax.device_put(array, place)


def _same(array: jax.Array) -> jax.Array:
    return array


def over(mesh: Mesh | None, function: F, specs: tuple[Any, ...], out: Any) -> F:
    """`function`, run by every device of the mesh on its parts of the arguments."""
    if mesh is None:
        return function
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False)


def made(make: Callable[[], T], specs: Any, mesh: Mesh | None) -> T:
    """What `make` makes, on the devices of the mesh."""
    if mesh is None:
        return make()
    return jax.jit(make, out_shardings=shardings(specs, mesh))()
