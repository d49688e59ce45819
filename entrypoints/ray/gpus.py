"""How many GPUs an engine wants of Ray, and whether it was given them."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from ... import OptionError

_DRIVER = Path("/proc/driver/nvidia/gpus")
"""Has an entry for each GPU of this machine."""


def gpus_of(engine_options: Mapping[str, Any]) -> int:
    """How many GPUs an engine with these options computes on, where it computes on GPUs."""
    sizes = ("tensor_parallel_size", "data_parallel_size")
    tensor, data = (engine_options.get(name) or 1 for name in sizes)
    return tensor * data


def gpus_to_ask_for(engine_options: Mapping[str, Any]) -> int:
    """`gpus_of` where there are any: in the cluster, or else, without one yet, in this machine."""
    if ray.is_initialized():
        there = ray.cluster_resources().get("GPU", 0) > 0
    else:
        there = _machine_has_any()
    return gpus_of(engine_options) if there else 0


def check_gpus(engine_options: Mapping[str, Any], remedy: str) -> None:
    """Raises OptionError where this actor was given other GPUs than its engine computes on.

    Without any, JAX would compute on the CPU and say nothing; with more, some would be idle.

    Args:
        remedy: where the number of GPUs is set.
    """
    if not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None:
        return
    given = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
    if given or (_machine_has_any() and os.environ.get("JAX_PLATFORMS") != "cpu"):
        _check(given, gpus_of(engine_options), remedy)


def _check(given: Sequence[str], needed: int, remedy: str) -> None:
    if len(given) == needed:
        return
    hint = "" if given else ", or JAX_PLATFORMS=cpu in its environment for the CPU"
    raise OptionError(
        f"Ray gave this actor {len(given)} GPUs, and tensor_parallel_size * data_parallel_size is "
        f"{needed}. Give num_gpus={needed} in {remedy}{hint}."
    )


def _machine_has_any() -> bool:
    return _DRIVER.is_dir() and any(_DRIVER.iterdir())
