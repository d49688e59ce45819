"""Sums over several GPUs within the kernel that norms them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from quire.pallas_kernels import block_reference, peer_sum
from quire.pallas_kernels.peer_sum import Mailbox

AXIS = "tensor"
CUT: tuple[Any, ...] = P(None, AXIS), P(AXIS), P(AXIS)
SPECS = Mailbox(*CUT)
EPS = 1e-5


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    if (found := len(jax.devices())) < 2:
        pytest.skip(f"sums over GPUs need two of them, and JAX sees {found}")
    return Mesh(np.array(jax.devices()), (AXIS,))


def over(mesh: Mesh, function: Any, specs: Any, out: Any) -> Any:
    return jax.jit(
        jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False)
    )


def connected(mesh: Mesh, width: int, dtype: str) -> Mailbox:
    mailbox = over(mesh, lambda: peer_sum.empty(mesh.size, width, dtype), (), SPECS)()
    connect = over(mesh, lambda box: peer_sum.connected(box, AXIS), (SPECS,), SPECS.peers)
    return mailbox._replace(peers=connect(mailbox))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("rows", "width"), [(1, 4096), (3, 1536), (64, 8192), (512, 4096)])
def test_all_devices_have_the_same_sum(mesh: Mesh, rows: int, width: int, dtype: str) -> None:
    rows = min(rows, peer_sum.rows_of(mesh.size, width, dtype))
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


def test_room_is_bounded() -> None:
    assert peer_sum.rows_of(2, 4096, "bfloat16") == 512
    assert peer_sum.rows_of(4, 8192, "bfloat16") == 170
    assert peer_sum.rows_of(8, 8192, "bfloat16") == 73
    mailbox = jax.eval_shape(lambda: peer_sum.empty(4, 8192, "bfloat16"))
    assert mailbox.inbox.shape == (2, 4, 170, 8192)
    assert mailbox.flags.shape == (9, 170)
    assert mailbox.peers.shape == (5, 4)
