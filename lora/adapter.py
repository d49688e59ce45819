"""Adapters as updates of parameters: `params[path][index] += b @ a`."""

import dataclasses
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
    down: np.ndarray
    """[r, in] in the type of the file. Parts of one fused module share the same array."""
    up: np.ndarray
    """[out..., r], likewise."""
    scale: float = 1.0

    @property
    def a(self) -> np.ndarray:
        """[r, in] float32."""
        return self.down.astype(np.float32)

    @property
    def b(self) -> np.ndarray:
        """[out..., r] float32, with the adapter's scale."""
        return self.up.astype(np.float32) * np.float32(self.scale)


@dataclasses.dataclass(frozen=True, eq=False)
class Adapter:
    """All updates of one adapter, as views of the tensors that it was read from."""

    name: str
    rank: int
    """The largest of any part."""
    parts: Mapping[str, tuple[Part, ...]]
    """By dotted path of the parameter. In a tied model those of `embed.weight` are for looking
    tokens up only; those of the head go by `head.weight`, which such a model does not have."""


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
