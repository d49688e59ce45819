"""The devices that share a model, and what lies where on them."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ..errors import OptionError
from ..models.shards import TENSOR, spec_of

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
Specs = dict[str, PartitionSpec]
"""How weights lie on a mesh, by dotted path."""


def make_mesh(tensor: int) -> Mesh | None:
    """The first `tensor` devices; None for one. Raises OptionError where there are not so many."""
    if tensor == 1:
        return None
    devices = jax.devices()
    if tensor > len(devices):
        raise OptionError(
            f"tensor_parallel_size={tensor}, but JAX sees {len(devices)} "
            f"{devices[0].platform} devices. Lower it, or make more devices visible."
        )
    return Mesh(np.array(devices[:tensor]), (TENSOR,))


def specs_of(
    axes: Mapping[str, tuple[str, ...]],
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    mesh: Mesh | None,
) -> Specs:
    """How each weight is cut; whole without a mesh."""
    if mesh is None:
        return dict.fromkeys(shapes, PartitionSpec())
    devices = mesh.shape[TENSOR]
    return {name: spec_of(axes[name], shape.shape, devices) for name, shape in shapes.items()}


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
