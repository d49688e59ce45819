"""Several GPUs, and a mailbox among them."""

from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from quire.engine.mailbox import SPECS
from quire.models.shards import TENSOR as AXIS
from quire.pallas_kernels import peer_memory
from quire.pallas_kernels.peer_memory import Mailbox

__all__ = ["AXIS", "SPECS"]


def all_gpus() -> Mesh:
    """Skips the test where there is one, or none."""
    if (found := len(jax.devices())) < 2:
        pytest.skip(f"GPUs that tell each other something are two, and JAX sees {found}")
    return Mesh(np.array(jax.devices()), (AXIS,))


def over(mesh: Mesh, function: Any, specs: Any, out: Any) -> Any:
    return jax.jit(
        jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False)
    )


def connected(mesh: Mesh, width: int, dtype: str) -> Mailbox:
    mailbox = over(mesh, lambda: peer_memory.empty(mesh.size, width, dtype), (), SPECS)()
    connect = over(mesh, lambda box: peer_memory.connected(box, AXIS), (SPECS,), SPECS.peers)
    return mailbox._replace(peers=connect(mailbox))
