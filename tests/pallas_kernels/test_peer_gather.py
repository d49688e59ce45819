"""Rows of which several GPUs have a part each."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P
from tests.pallas_kernels.peers import AXIS, SPECS, all_gpus, connected, over

from quire.pallas_kernels import peer_gather, peer_memory, peer_sum
from quire.pallas_kernels.peer_memory import Mailbox


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("rows", "part", "width"),
    [(1, 64128, 4096), (16, 64128, 4096), (8, 4096, 8192), (3, 1028, 1536), (2, 32064, 1280)],
)
def test_all_devices_have_all_parts(rows: int, part: int, width: int) -> None:
    """Also where sums go through the same slots before and after."""
    mesh = all_gpus()
    mailbox = connected(mesh, width, "bfloat16")
    place = NamedSharding(mesh, P(AXIS))
    weight = jnp.ones(width, jnp.bfloat16)
    assert peer_gather.fits(rows, part, jax.eval_shape(lambda: mailbox_of(mesh.size, width)))

    def several(parts: Any, x: Any, mailbox: Mailbox) -> Any:
        found = []
        for n in range(3):
            whole = peer_gather.gathered(parts[0, n], mailbox)
            total, _ = peer_sum.add_rms_norm(x[0], x[0], weight, mailbox, 1e-5)
            found.append((whole[None], total[None]))
        return found

    run = over(mesh, several, (P(AXIS), P(AXIS), SPECS), P(AXIS))
    rng = np.random.default_rng(0)
    for _ in range(30):
        parts = rng.normal(size=(mesh.size, 3, rows, part)).astype(np.float32)
        x = np.ones((mesh.size, 5, width), jnp.bfloat16)
        found = run(jax.device_put(parts, place), jax.device_put(x, place), mailbox)
        for n, (whole, total) in enumerate(found):
            want = np.concatenate(list(parts[:, n]), axis=1)
            for shard in whole.addressable_shards:
                np.testing.assert_array_equal(np.asarray(shard.data[0]), want)
            assert (np.asarray(total, np.float32) == 1 + mesh.size).all()


def mailbox_of(devices: int, width: int) -> Mailbox:
    return peer_memory.empty(devices, width, "bfloat16")


@pytest.mark.parametrize(
    ("rows", "part", "fits"),
    [(1, 64128, True), (16, 64128, True), (17, 64128, False)]
    + [(1, 64126, False), (1, 2044, False)],  # no whole vectors, less than one piece
)
def test_which_rows_fit(rows: int, part: int, fits: bool) -> None:
    mailbox = jax.eval_shape(lambda: mailbox_of(2, 4096))
    assert peer_gather.fits(rows, part, mailbox) == fits
