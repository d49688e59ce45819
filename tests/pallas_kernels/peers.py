"""Several GPUs, and a mailbox among them."""

from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from quire.engine import mailbox
from quire.engine.mailbox import SPECS
from quire.engine.mesh import over as parts_over
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
    return jax.jit(parts_over(mesh, function, specs, out))


def connected(mesh: Mesh, width: int, dtype: str) -> Mailbox:
    empty = over(mesh, lambda: peer_memory.empty(mesh.size, width, dtype), (), SPECS)
    return mailbox.connected(empty(), mesh)
