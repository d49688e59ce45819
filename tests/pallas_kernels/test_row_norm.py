"""Adding and norming rows: the kernel against its twin, bitwise but for the order of a sum."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quire.pallas_kernels import block_reference
from quire.pallas_kernels.row_norm import add_rms_norm, fits

needs_mosaic = pytest.mark.skipif(
    jax.__version_info__ < (0, 11, 2), reason="Mosaic kernels need jax 0.11.2"
)
ON = [pytest.param(True, id="interpreted"), pytest.param(False, id="gpu", marks=pytest.mark.gpu)]


def noise(seed: int, *shape: int, dtype: str) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(1, 3, shape), dtype)


@needs_mosaic
@pytest.mark.parametrize("interpret", ON)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("rows", "width"), [(1, 4096), (3, 256), (8, 3584), (64, 768)])
def test_matches_the_twin(interpret: bool, dtype: str, rows: int, width: int) -> None:
    x, y = (noise(seed, rows, width, dtype=dtype) for seed in (0, 1))
    weight = noise(2, width, dtype=dtype)
    run = jax.jit(functools.partial(add_rms_norm, eps=1e-5, interpret=interpret))
    total, normed = run(x, y, weight)
    want_total, want = block_reference.add_rms_norm(x, y, weight, 1e-5)
    np.testing.assert_array_equal(np.asarray(total), np.asarray(want_total))
    ulp = 2 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(*(np.asarray(a, np.float32) for a in (normed, want)), rtol=ulp)


@needs_mosaic
@pytest.mark.gpu
def test_a_row_does_not_depend_on_the_others() -> None:
    x, y = (noise(seed, 8, 4096, dtype="bfloat16") for seed in (0, 1))
    weight = noise(2, 4096, dtype="bfloat16")
    run = jax.jit(functools.partial(add_rms_norm, eps=1e-5))
    whole = run(x, y, weight)
    alone = run(x[5:6], y[5:6], weight)
    for some, one in zip(whole, alone, strict=True):
        np.testing.assert_array_equal(np.asarray(some[5:6]), np.asarray(one))


def test_fits_rows_that_threads_share_evenly() -> None:
    assert fits(4096, jnp.bfloat16)
    assert fits(3584, jnp.float16)
    assert not fits(4100, jnp.bfloat16)
