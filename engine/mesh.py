"""The devices that share a model, and what lies where on them."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ..errors import OptionError
from ..models.config import TextConfig
from ..models.features import is_in_tower
from ..models.shards import TENSOR, spec_of

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
Specs = dict[str, PartitionSpec]
"""How weights lie on a mesh, by dotted path."""


def make_mesh(tensor: int, config: TextConfig) -> Mesh | None:
    """The first `tensor` devices, for a model to be shared out among them; None for one.

    Raises OptionError where there are not so many, or the model cannot be cut so.
    """
    if tensor == 1:
        return None
    sizes = config.num_kv_heads, config.intermediate_size
    if any(size % tensor for size in sizes):
        allowed = [n for n in range(1, sizes[0] + 1) if not any(size % n for size in sizes)]
        raise OptionError(
            f"tensor_parallel_size={tensor} does not divide the model's {sizes[0]} KV heads and "
            f"the {sizes[1]} columns of its MLP; it may be {', '.join(map(str, allowed))}."
        )
    devices = jax.devices()
    if tensor > len(devices):
        raise OptionError(
            f"tensor_parallel_size={tensor}, but JAX sees {len(devices)} "
            f"{devices[0].platform} devices. Lower it, or make more devices visible."
        )
    return Mesh(np.array(devices[:tensor]), (TENSOR,))


def specs_of(
    architecture: type[Any],
    axes: Mapping[str, tuple[str, ...]],
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    mesh: Mesh | None,
) -> Specs:
    """How each weight is cut; those of towers, and all without a mesh, are whole."""
    devices = 1 if mesh is None else mesh.shape[TENSOR]
    return {
        name: PartitionSpec()
        if devices == 1 or is_in_tower(architecture, name)
        else spec_of(axes[name], shape.shape, devices)
        for name, shape in shapes.items()
    }


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
