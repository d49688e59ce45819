"""A model in shards: every device runs it on its own part of the weights that can be cut.

A weight is cut along the first of its logical axes that is in `CUT`, so that heads, columns of the
MLP and words of the vocabulary are shared out, and the sums over them are added up among the
devices (arXiv:1909.08053). Inside, a part of a weight is known by its shape; elsewhere weights are
whole, and none of this does anything.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

TENSOR = "tensor"
"""The axis of a mesh along which weights are cut."""
CUT = ("heads", "kv_heads", "mlp", "vocab")
"""Logical axes of weights that are cut."""


def spec_of(axes: Sequence[str], shape: Sequence[int], devices: int) -> PartitionSpec:
    """How a weight of these logical axes lies on so many devices; whole where none divides it."""
    for place, (axis, size) in enumerate(zip(axes, shape, strict=True)):
        if axis in CUT and size % devices == 0:
            return PartitionSpec(*(None,) * place, TENSOR)
    return PartitionSpec()


def summed(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The sum over the devices' parts."""
    return jax.lax.psum(x, TENSOR)


def gathered(x: Float[Array, "*N part"]) -> Float[Array, "*N whole"]:
    """The devices' parts, side by side."""
    return jax.lax.all_gather(x, TENSOR, axis=x.ndim - 1, tiled=True)


def looked_up(table: Float[Array, "part E"], index: Int[Array, "*N"]) -> Float[Array, "*N E"]:
    """Vectors at `index` of a table of which this device has a part."""
    own = index - jax.lax.axis_index(TENSOR) * len(table)
    there = (own >= 0) & (own < len(table))
    vectors = table.at[own].get(mode="clip")
    return summed(jnp.where(there[..., None], vectors, jnp.zeros_like(vectors)))
