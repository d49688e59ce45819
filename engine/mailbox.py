"""Memory through which the devices of a mesh add up what each has, where a kernel can do that."""

import functools
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import Mesh, PartitionSpec

from ..models import hopper
from ..models.shards import TENSOR
from ..pallas_kernels import peer_memory, peer_sum
from ..pallas_kernels.peer_memory import Mailbox
from .mesh import over

if TYPE_CHECKING:
    from .model import ModelSpec

_ROWS: Any = PartitionSpec(TENSOR)
_PLACES: Any = PartitionSpec(None, TENSOR)
SPECS = Mailbox(inbox=_PLACES, flags=_ROWS, words=_PLACES, calls=_ROWS, peers=_ROWS)
"""How the parts of a mailbox lie on a mesh: each device has one of its own."""


def has_use(spec: "ModelSpec") -> bool:
    """Whether the model's devices can reach each other's memory, and a kernel adds up there."""
    if spec.devices == 1 or jax.process_count() > 1:
        return False
    if hopper.why_not(jax.default_backend(), str(spec.dtype)) is not None:
        return False
    return peer_sum.fits(spec.config.hidden_size, spec.dtype)


def new_mailbox(spec: "ModelSpec", mesh: Mesh) -> Mailbox:
    """One for each device, which do not yet know of each other."""
    make = functools.partial(peer_memory.empty, mesh.size, spec.config.hidden_size, spec.dtype)
    return jax.jit(over(mesh, make, (), SPECS))()


def connected(mailbox: Mailbox, mesh: Mesh) -> Mailbox:
    """The same, in the same place, each of which knows where the others are."""
    connect = functools.partial(peer_memory.connected, axis=TENSOR)
    peers = jax.jit(over(mesh, connect, (SPECS,), SPECS.peers))(mailbox)
    return mailbox._replace(peers=peers)


def mailbox_bytes(spec: "ModelSpec") -> int:
    """Of that of one device."""
    make = functools.partial(peer_memory.empty, spec.devices, spec.config.hidden_size, spec.dtype)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(make)))
