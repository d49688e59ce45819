"""Sums over several GPUs within the kernel that norms them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P
from tests.pallas_kernels.peers import AXIS, SPECS, all_gpus, connected, over

from quire.pallas_kernels import block_reference, peer_memory, peer_sum
from quire.pallas_kernels.peer_memory import Mailbox

EPS = 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("rows", "width"), [(1, 4096), (3, 1536), (64, 8192), (512, 4096)])
def test_all_devices_have_the_same_sum(rows: int, width: int, dtype: str) -> None:
    mesh = all_gpus()
    rows = min(rows, peer_memory.rows_of(mesh.size, width, dtype))
    rng = np.random.default_rng(0)
    mailbox = connected(mesh, width, dtype)
    place = NamedSharding(mesh, P(AXIS))
    weight = jnp.asarray(rng.normal(size=width), dtype)

    def several(x: Any, parts: Any, mailbox: Mailbox) -> Any:
        normed = x
        for n in range(3):  # one behind the other, as in the layers of a model
            x, normed = peer_sum.add_rms_norm(x[0], parts[0, n], weight, mailbox, EPS)
            x = x[None]
        return x, normed[None]

    run = over(mesh, several, (P(AXIS), P(AXIS), SPECS), (P(AXIS), P(AXIS)))
    for _ in range(30):
        x = rng.normal(size=(rows, width)).astype(jnp.dtype(dtype))
        parts = rng.normal(size=(mesh.size, 3, rows, width)).astype(jnp.dtype(dtype))
        given = np.broadcast_to(x, (mesh.size, rows, width))
        total, normed = run(jax.device_put(given, place), jax.device_put(parts, place), mailbox)
        want = want_normed = jnp.asarray(x)
        for n in range(3):
            summed = parts[:, n].astype(np.float32).sum(0).astype(jnp.dtype(dtype))
            want, want_normed = block_reference.add_rms_norm(want, jnp.asarray(summed), weight, EPS)
        for got, expected in ((total, want), (normed, want_normed)):
            found = [np.asarray(part.data[0], np.float32) for part in got.addressable_shards]
            assert all((one == found[0]).all() for one in found)
            error = np.linalg.norm(found[0] - np.asarray(expected, np.float32))
            assert error < 1e-2 * np.linalg.norm(np.asarray(expected, np.float32))


@pytest.mark.parametrize(
    ("width", "dtype", "fits"),
    [(4096, "bfloat16", True), (1536, "float16", True), (4096, "float32", False)]
    + [(1000, "bfloat16", False)],
)
def test_which_rows_fit(width: int, dtype: str, fits: bool) -> None:
    assert peer_sum.fits(width, dtype) == fits
