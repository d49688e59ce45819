"""Parameters that hold several copies of each KV head, on a mesh, and what is stored of them.

Of what is stored the heads are too few to be shared out, so it is cut along the last axis.
"""

import jax
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from ...models import shards
from ..mesh import put


def with_copies(stored: jax.Array, copies: int, sharding: Sharding) -> jax.Array:
    """The parameter in its place, of what `shape_without_copies` describes."""
    make = jax.jit(shards.with_copies, static_argnums=1, out_shardings=stored.sharding)
    return put(make(stored, copies), sharding)


def without_copies(param: jax.Array, copies: int) -> jax.Array:
    """What is stored of a parameter."""
    place = shape_without_copies(param, copies).sharding
    make = jax.jit(shards.without_copies, static_argnums=1, out_shardings=place)
    return make(put(param, place), copies)


def shape_without_copies(
    param: jax.Array | jax.ShapeDtypeStruct, copies: int
) -> jax.ShapeDtypeStruct:
    """What is stored of a parameter, on the same devices: whole where they do not divide it."""
    assert isinstance(param.sharding, NamedSharding), "there are copies on a mesh alone"
    mesh, shape = param.sharding.mesh, shards.shape_without_copies(param.shape, copies)
    last = None if shape[-1] % mesh.size else shards.TENSOR
    sharding = NamedSharding(mesh, PartitionSpec(*(None,) * (len(shape) - 1), last))
    return jax.ShapeDtypeStruct(shape, param.dtype, sharding=sharding)
