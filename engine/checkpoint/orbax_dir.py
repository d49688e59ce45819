"""Writes and reads parameters with Orbax, straight from and to their place on the devices."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .layout import PARAMS_DIR
from .plan import Problems, castable
from .problems import damaged, mismatch

if TYPE_CHECKING:
    import jax
    from jax.sharding import Sharding

_GIB = 1 << 30
_CONCURRENT_GIB = 2


def save_orbax(
    folder: Path, params: "Mapping[str, jax.Array]", copies: Mapping[str, int] | None = None
) -> None:
    """Writes `params` below `folder`, which must not have any yet.

    Args:
        copies: how many of each KV head a parameter holds, where that is not 1. One is written.
    """
    from .copies import without_copies  # with jax, which is slow to import

    held = {name: without_copies(params[name], count) for name, count in (copies or {}).items()}
    with _checkpointer(params) as checkpointer:
        checkpointer.save((folder / PARAMS_DIR).resolve(), {**params, **held})


def load_orbax(
    folder: Path,
    shapes: "Mapping[str, jax.ShapeDtypeStruct]",
    shardings: "Mapping[str, Sharding]",
    copies: Mapping[str, int] | None = None,
) -> "dict[str, jax.Array]":
    """The parameters below `folder`, converted to the types in `shapes`, each with its sharding.

    Args:
        copies: how many of each KV head a parameter shall hold, where that is not 1; on disk is 1.

    Raises:
        CheckpointError: the files are damaged, or differ from `shapes` in names, shapes or types.
    """
    from .copies import shape_without_copies, with_copies  # with jax, which is slow to import

    path = (folder / PARAMS_DIR).resolve()
    with _checkpointer(shapes) as checkpointer:
        try:
            stored = _stored(checkpointer, path)
        except Exception as error:  # neither Orbax nor TensorStore has a type of its own
            raise damaged(path, f"it is no complete Orbax checkpoint ({error})") from error
        target = {name: _placed(shapes[name], shardings[name]) for name in shapes}
        for name, count in (copies or {}).items():
            target[name] = shape_without_copies(target[name], count)
        _check(folder, stored, target)
        try:
            restored = checkpointer.restore(path, target)
        except Exception as error:
            raise damaged(path, f"Orbax cannot read it ({error})") from error
    for name, count in (copies or {}).items():
        restored[name] = with_copies(restored[name], count, shardings[name])
    return {name: restored[name] for name in shapes}


def _checkpointer(params: "Mapping[str, jax.Array | jax.ShapeDtypeStruct]") -> Any:
    import orbax.checkpoint as ocp

    largest = max((p.size * np.dtype(p.dtype).itemsize for p in params.values()), default=0)
    limit = max(_CONCURRENT_GIB, -(-largest // _GIB))
    return ocp.StandardCheckpointer(save_concurrent_gb=limit, restore_concurrent_gb=limit)


def _stored(checkpointer: Any, path: Path) -> dict[str, Any]:
    described = checkpointer.metadata(path).item_metadata
    if described is None:  # Orbax only logs what is wrong with it
        raise ValueError("the description of its parameters is missing or unreadable")
    return {
        str(name): (tuple(array.shape), np.dtype(array.dtype))
        for name, array in described.tree.items()
    }


def _placed(shape: "jax.ShapeDtypeStruct", sharding: "Sharding") -> "jax.ShapeDtypeStruct":
    import jax

    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def _check(
    folder: Path,
    stored: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    shapes: "Mapping[str, jax.ShapeDtypeStruct]",
) -> None:
    problems: Problems = defaultdict(list)
    if missing := sorted(shapes.keys() - stored.keys()):
        problems["parameters missing from the checkpoint"] += missing
    if unused := sorted(stored.keys() - shapes.keys()):
        problems["parameters the model does not have"] += unused
    for name in sorted(shapes.keys() & stored.keys()):
        (shape, dtype), wanted = stored[name], shapes[name]
        if shape != wanted.shape or not castable(dtype, np.dtype(wanted.dtype)):
            problems["wrong shapes or types"].append(
                f"{name} is {dtype}{list(shape)}, the model needs "
                f"{np.dtype(wanted.dtype)}{list(wanted.shape)}"
            )
    if problems:
        raise mismatch(folder, problems)
