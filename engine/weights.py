"""New weights for a running engine."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import SingleDeviceSharding

from ..errors import CheckpointError
from .mesh import put

if TYPE_CHECKING:
    from .assembly import Assembly


def update_params(assembly: "Assembly", params: Mapping[str, Any]) -> None:
    """Replaces the weights by `params`, after checking every name, shape and type.

    Arrays that lie on the engine's devices as its own do are taken as they are, without a copy;
    those that lie otherwise on the same devices go between them. Raises CheckpointError that lists
    every mismatch, before anything changes.
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
    places = assembly.spec.shardings or dict.fromkeys(
        shapes, SingleDeviceSharding(jax.devices()[0])
    )
    placed = {name: put(params[name], places[name]) for name in shapes}
    assembly.core.recompute_all()
    assembly.pool.reset_prefix_cache()
    assembly.features.clear()
    assembly.runner.replace_params(placed)
