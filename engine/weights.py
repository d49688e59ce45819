"""New weights for a running engine."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import SingleDeviceSharding

from ..errors import CheckpointError
from .mesh import joined, put, shardings

if TYPE_CHECKING:
    from .assembly import Assembly
    from .model import ModelSpec


def update_params(assembly: "Assembly", params: Mapping[str, Any]) -> None:
    """Replaces the weights by `params`, after checking every name, shape and type.

    See `for_replicas` on arrays that lie on devices. Raises CheckpointError that lists every
    mismatch, before anything changes.
    """
    shapes = assembly.spec.shapes
    problems = [f"{name}: missing" for name in shapes.keys() - params.keys()]
    problems += [f"{name}: unknown" for name in params.keys() - shapes.keys()]
    for name in shapes.keys() & params.keys():
        given, wanted = params[name], shapes[name]
        if (given.shape, given.dtype) != (wanted.shape, wanted.dtype):
            problems.append(
                f"{name}: {given.dtype}{list(given.shape)}, not {wanted.dtype}{list(wanted.shape)}"
            )
    if problems:
        shown = "\n  ".join(sorted(problems)[:20])
        raise CheckpointError(
            f"the new weights do not match the model in {len(problems)} places; start from a copy "
            f"of engine.params.\n  {shown}"
        )
    placed = for_replicas(params, assembly.spec)
    assembly.core.recompute_all()
    for replica, own in zip(assembly.replicas, placed, strict=True):
        replica.pool.reset_prefix_cache()
        replica.features.clear()
        replica.runner.executor.params = own


def for_replicas(params: Mapping[str, Any], spec: "ModelSpec") -> list[dict[str, jax.Array]]:
    """Weights as they lie on the devices of each replica.

    Arrays that lie there as those of the engine do are taken as they are, without a copy; those
    that lie otherwise on the same devices go between them. Others go to the first replica, and from
    its devices to the rest.
    """
    if spec.shardings is None:
        place = SingleDeviceSharding(spec.all_devices[0])
        return [{name: put(given, place) for name, given in params.items()}]
    meshes = [mesh for mesh in spec.meshes if mesh is not None]
    every, devices = shardings(spec.specs, joined(meshes)), set(spec.all_devices)
    places = [shardings(spec.specs, mesh) for mesh in meshes]
    placed: list[dict[str, jax.Array]] = [{} for _ in places]
    for name, given in params.items():
        everywhere = isinstance(given, jax.Array) and given.sharding.device_set == devices
        there = put(given, (every if everywhere and len(places) > 1 else places[0])[name])
        for place, own in zip(places, placed, strict=True):
            own[name] = put(there, place[name])
    return placed
