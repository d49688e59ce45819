"""A model in shards: every device runs it on its own part of the weights that can be cut.

A weight is cut along the first of its logical axes that is in `CUT`, so that heads, columns of the
MLP and words of the vocabulary are shared out, and the sums over them are added up among the
devices (arXiv:1909.08053). Inside, a part of a weight is known by its shape; elsewhere weights are
whole, and none of this does anything.

Where there are more devices than KV heads, each head is copied, and its query heads are shared out
among the copies: the model has as many KV heads as devices.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

TENSOR = "tensor"
"""The axis of a mesh along which weights are cut."""
CUT = ("heads", "kv_heads", "mlp", "vocab", "vision_heads", "vision_mlp")
"""Logical axes of weights that are cut."""


def cut_axis(axes: Sequence[str], shape: Sequence[int], devices: int) -> int | None:
    """Along which axis a weight is cut for so many devices; None where it is whole on each."""
    for place, (axis, size) in enumerate(zip(axes, shape, strict=True)):
        if devices > 1 and axis in CUT and size % devices == 0:
            return place
    return None


def spec_of(axes: Sequence[str], shape: Sequence[int], devices: int) -> PartitionSpec:
    """How a weight of these logical axes lies on so many devices; whole where none divides it."""
    place = cut_axis(axes, shape, devices)
    return PartitionSpec() if place is None else PartitionSpec(*(None,) * place, TENSOR)


def summed(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The sum over the devices' parts."""
    return jax.lax.psum(x, TENSOR)


def gathered(x: Float[Array, "*N part"]) -> Float[Array, "*N whole"]:
    """The devices' parts, side by side."""
    return jax.lax.all_gather(x, TENSOR, axis=x.ndim - 1, tiled=True)


def own_part(x: Float[Array, "..."], axis: int | None, devices: int) -> Float[Array, "..."]:
    """This device's part of what all have, cut along an axis; all of it for None."""
    if axis is None:
        return x
    size = x.shape[axis] // devices
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(TENSOR) * size, size, axis)


def own_rows(table: Float[Array, "part ..."], index: Int[Array, "*N"], count: int) -> Array:
    """Rows at `index` of a table of `count`, the nearest that exists for one out of range.

    Of a table of which this device has a part: zeros for those of the others, so that `summed`
    gives them all.
    """
    if len(table) == count:
        return table.at[index].get(mode="clip")
    own = jnp.clip(index, 0, count - 1) - jax.lax.axis_index(TENSOR) * len(table)
    there = (own >= 0) & (own < len(table))
    rows = table.at[own].get(mode="clip")
    return jnp.where(there.reshape(*there.shape, *(1,) * (table.ndim - 1)), rows, 0)


def has_copies(axes: Sequence[str]) -> bool:
    """Whether a weight of these logical axes is one of queries, keys and values together."""
    return tuple(axes[:2]) == ("kv_heads", "group")


def with_copies(w: Float[Array, "Hkv G+2 ..."], copies: int) -> Float[Array, "..."]:
    """[Hkv * copies, G / copies + 2, ...]: each K and V so often, by a share of their queries."""
    if copies == 1:
        return w
    heads, groups = w.shape[0], w.shape[1] - 2
    q = w[:, :-2].reshape(heads * copies, groups // copies, *w.shape[2:])
    return jnp.concatenate([q, jnp.repeat(w[:, -2:], copies, axis=0)], axis=1)


def shape_without_copies(shape: tuple[int, ...], copies: int) -> tuple[int, ...]:
    """That of the weight that `with_copies` took, from what it gave."""
    if copies == 1:
        return shape
    return shape[0] // copies, (shape[1] - 2) * copies + 2, *shape[2:]


def without_copies(w: Float[Array, "Hkv G+2 ..."], copies: int) -> Float[Array, "..."]:
    """The inverse of `with_copies`, which reads the first copy of each K and V alone."""
    if copies == 1:
        return w
    heads, groups = w.shape[0], w.shape[1] - 2
    q = w[:, :-2].reshape(heads // copies, groups * copies, *w.shape[2:])
    return jnp.concatenate([q, w[::copies, -2:]], axis=1)
