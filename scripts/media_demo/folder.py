"""A demo's folder in Hugging Face layout."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import safetensors.flax

Params = dict[str, jax.Array]


def make_folder(source: Path, folder: Path) -> None:
    """Makes a copy of `source` without its weights, unless `folder` is `source` itself."""
    if folder.resolve() != source:
        weights = shutil.ignore_patterns("*.safetensors")
        shutil.copytree(source, folder, ignore=weights, dirs_exist_ok=True)


def tensors_of(
    model: Any,
    config: Any,
    params: Params,
    published: Callable[[str], str],
    shape: Callable[[str, tuple[int, ...]], tuple[int, ...]],
) -> Params:
    """The weights in bfloat16 under their names in files.

    Args:
        model: the class, whose `checkpoint_map` tells what is where.
        published: a tensor's name in files, of its name in the map.
        shape: a tensor's shape in files, of its name in the map and its shape in a parameter.
    """
    tensors = {}
    for piece in model.checkpoint_map(config).pieces:
        value = params[piece.param][piece.index].astype(jnp.bfloat16)
        tensors[published(piece.tensor)] = value.reshape(shape(piece.tensor, value.shape))
    return tensors


def flat_heads(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in a file of a vector or a matrix: heads are not a dimension of their own."""
    return (-1,) if name.endswith(".bias") or len(shape) == 1 else (-1, shape[-1])


def save(folder: Path, tensors: Params) -> None:
    """Writes the tensors as the folder's weights."""
    path = folder / "model.safetensors"
    safetensors.flax.save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)
