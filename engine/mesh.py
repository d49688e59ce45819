"""The devices that share a model, and what lies where on them."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from ..errors import OptionError
from ..models.config import TextConfig
from ..models.shards import TENSOR, spec_of

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
Specs = dict[str, PartitionSpec]
"""How weights lie on a mesh, by dotted path."""


def make_mesh(tensor: int, given: Any, config: TextConfig) -> Mesh | None:
    """The devices for a model to be shared out among: the first `tensor`, or those of a mesh that
    is `given`. None for one, unless it is given.

    Raises OptionError where there are not so many, the mesh is not fit, or the model cannot be cut.
    """
    if given is not None:
        mesh = _checked(given, tensor)
        _check_sizes(f"a mesh of {mesh.size} devices", mesh.size, config)
        return mesh
    if tensor == 1:
        return None
    _check_sizes(f"tensor_parallel_size={tensor}", tensor, config)
    devices = jax.devices()
    if tensor > len(devices):
        raise OptionError(
            f"tensor_parallel_size={tensor}, but JAX sees {len(devices)} "
            f"{devices[0].platform} devices. Lower it, or make more devices visible."
        )
    return Mesh(np.array(devices[:tensor]), (TENSOR,))


def _checked(given: Any, tensor: int) -> Mesh:
    """A mesh of a user's, whose axes may be of any type."""
    if not isinstance(given, Mesh):
        raise OptionError(
            f"mesh={given!r} is a {type(given).__name__}; it must be a jax.sharding.Mesh."
        )
    sizes = dict(given.shape)
    if sizes.get(TENSOR) != given.size:
        raise OptionError(
            f"mesh has the axes {sizes}; it must have one named {TENSOR!r}, and others of size 1 "
            f"alone. Give Mesh(devices, ({TENSOR!r},))."
        )
    if tensor not in (1, given.size):
        raise OptionError(
            f"tensor_parallel_size={tensor}, but the mesh has {given.size} devices. Leave it out."
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
    """A tree of shapes with how they lie on a mesh."""
    if mesh is None:
        return shapes
    return jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        shapes,
        shardings(specs, mesh),
    )


def put(array: Any, place: Sharding) -> jax.Array:
    """An array in its place: as it is where it lies there, else on its way between the devices,
    past the host."""
    if not isinstance(array, jax.Array):
        return jax.device_put(array, place)
    if array.sharding.is_equivalent_to(place, array.ndim):
        return array
    devices, wanted = (list(s.devices_indices_map(array.shape)) for s in (array.sharding, place))
    if devices == wanted:  # here `device_put` would go through the host
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
