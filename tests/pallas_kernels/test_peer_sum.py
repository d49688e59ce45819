"""Sums over several GPUs within the kernel that norms them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P
from tests.pallas_kernels.peers import AXIS, SPECS, all_gpus, connected, over

from quire.pallas_kernels import block_reference, peer_memory, peer_sum, row_matmul
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


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("out", "width"), [(3072, 4096), (14336, 4096), (20, 1536), (5120, 8192)])
def test_products_of_one_row_have_the_same_sum(out: int, width: int, dtype: str) -> None:
    """Also where rows are added up through the same slot between them."""
    mesh = all_gpus()
    rng = np.random.default_rng(0)
    mailbox = connected(mesh, width, dtype)
    place = NamedSharding(mesh, P(AXIS))
    weight = jnp.asarray(rng.normal(size=width), dtype)
    w = jnp.asarray(rng.normal(size=(2, out, width)) * width**-0.5, dtype)
    options: dict[str, Any] = {"eps": EPS, "activation": "silu"}

    def several(x: Any, parts: Any, w: Any, mailbox: Mailbox) -> Any:
        x, first = row_matmul.norm_matmul(x[0], parts[0, 0], weight, w[0], mailbox, eps=EPS)
        x, second = row_matmul.norm_gated_matmul(x, parts[0, 1], weight, w, mailbox, **options)
        x, third = peer_sum.add_rms_norm(x, parts[0, 2], weight, mailbox, EPS)
        return x[None], first[None], second[None], third[None]

    def expected(x: Any, sums: Any, w: Any) -> Any:
        x, first = block_reference.norm_matmul(x, sums[0], weight, w[0], eps=EPS)
        x, second = block_reference.norm_gated_matmul(x, sums[1], weight, w, **options)
        x, third = block_reference.add_rms_norm(x, sums[2], weight, EPS)
        return x, first, second, third

    run = over(mesh, several, (P(AXIS), P(AXIS), P(), SPECS), P(AXIS))
    for _ in range(30):
        x = rng.normal(size=(1, width)).astype(jnp.dtype(dtype))
        parts = rng.normal(size=(mesh.size, 3, 1, width)).astype(jnp.dtype(dtype))
        given = np.broadcast_to(x, (mesh.size, 1, width))
        found = run(jax.device_put(given, place), jax.device_put(parts, place), w, mailbox)
        sums = parts.astype(np.float32).sum(0).astype(jnp.dtype(dtype))
        for got, want in zip(found, jax.jit(expected)(x, sums, w), strict=True):
            shards = [np.asarray(part.data[0], np.float32) for part in got.addressable_shards]
            assert all((one == shards[0]).all() for one in shards)
            error = np.linalg.norm(shards[0] - np.asarray(want, np.float32))
            assert error < 1e-2 * np.linalg.norm(np.asarray(want, np.float32))


@pytest.mark.parametrize(
    ("width", "dtype", "fits"),
    [(4096, "bfloat16", True), (1536, "float16", True), (4096, "float32", False)]
    + [(1000, "bfloat16", False)],
)
def test_which_rows_fit(width: int, dtype: str, fits: bool) -> None:
    assert peer_sum.fits(width, dtype) == fits
