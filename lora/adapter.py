"""Adapters as updates of parameters: `params[path][index] += b @ a`."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .mapping import EMBED, HEAD


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """An update of low rank of a part of a parameter, whose shape is [out..., in]."""

    index: Any
    """Basic index into the parameter; `()` is all of it."""
    a: np.ndarray
    """[r, in] float32. Parts of one fused module of the checkpoint share the same array."""
    b: np.ndarray
    """[out..., r] float32, with the adapter's scale."""


@dataclasses.dataclass(frozen=True, eq=False)
class Adapter:
    """All updates of one adapter, on the host."""

    name: str
    rank: int
    """The largest of any part."""
    parts: Mapping[str, tuple[Part, ...]]
    """By dotted path of the parameter. In a tied model those of `embed.weight` are for looking
    tokens up only; those of the head go by `head.weight`, which such a model does not have."""
    digest: str
    """sha256 of what the files say, names and scales included: equal for equal updates."""

    @functools.cached_property
    def nbytes(self) -> int:
        """Bytes of host memory; a shared array counts once."""
        arrays = [x for parts in self.parts.values() for part in parts for x in (part.a, part.b)]
        return sum({id(array): array.nbytes for array in arrays}.values())


def merged(params: Mapping[str, Any], adapter: Adapter) -> dict[str, Any]:
    """The parameters of the model with the adapter in its weights; those it changes are copies.

    Where the model is tied and the adapter changes the embedding or the head, the two differ, and
    `head.weight` is added: these are the parameters of the same model without tied embeddings.
    """
    result = dict(params)
    if HEAD not in params and adapter.parts.keys() & {EMBED, HEAD}:
        result[HEAD] = params[EMBED]
    for path, parts in adapter.parts.items():
        weight = np.array(result[path], np.float32)
        for part in parts:
            weight[part.index] += part.b @ part.a
        weight = weight.astype(result[path].dtype)
        result[path] = jnp.asarray(weight) if isinstance(result[path], jax.Array) else weight
    return result
