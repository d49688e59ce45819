"""Adding and norming rows: the kernel against its twin, bitwise but for the order of a sum."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quire.pallas_kernels import block_reference
from quire.pallas_kernels.block_reference import Update
from quire.pallas_kernels.row_norm import add_rms_norm, fits

needs_mosaic = pytest.mark.skipif(
    jax.__version_info__ < (0, 11, 2), reason="Mosaic kernels need jax 0.11.2"
)
ON = [pytest.param(True, id="interpreted"), pytest.param(False, id="gpu", marks=pytest.mark.gpu)]
# rows, width, slots, rank
UPDATED = {
    "two warpgroups": (3, 2048, 2, 16),
    "short vectors": (4, 768, 3, 6),
    "one warpgroup": (2, 256, 1, 1),
    "a loop": (2, 1024, 2, 40),
}
REAL = {
    "one row": (1, 4096, 4, 16),
    "decode": (64, 4096, 4, 16),
    "small rank": (64, 4096, 16, 8),
    "large rank": (64, 4096, 4, 64),
    "prompt": (512, 4096, 8, 32),
    "narrow": (77, 2048, 4, 16),
    "wide": (64, 8192, 4, 16),
    "seven warpgroups": (64, 3584, 4, 32),
}


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


def updated(rows: int, width: int, slots: int, rank: int, dtype: str) -> Update:
    """Slots go round, with none among them; NaNs fill h where another slot's would be read."""
    index = jnp.arange(rows) % (slots + 1)
    mine = jnp.arange(slots) == index[:, None]
    h = jnp.where(mine[:, None, :, None], noise(3, rows, 1, slots, rank, dtype=dtype), jnp.nan)
    b = noise(4, slots, rank, width, dtype=dtype) / rank
    return Update(h, b, index.astype(jnp.int32))


def check_updated(shape: tuple[int, int, int, int], dtype: str, interpret: bool) -> None:
    """Sums in float32 of another order may round differently: to one place of the 16-bit type."""
    rows, width = shape[:2]
    x, y = (noise(seed, rows, width, dtype=dtype) for seed in (0, 1))
    weight, update = noise(2, width, dtype=dtype), updated(*shape, dtype)
    run = functools.partial(add_rms_norm, eps=1e-5, interpret=interpret)
    got = jax.jit(run)(x, y, weight, update=update)
    twin = functools.partial(block_reference.add_rms_norm, eps=1e-5)
    want = jax.jit(twin)(x, y, weight, update=update)
    ulp = 2 * float(jnp.finfo(dtype).eps)
    for one, other in zip(got, want, strict=True):
        wide = (np.asarray(a, np.float32) for a in (one, other))
        np.testing.assert_allclose(*wide, rtol=2 * ulp, atol=1e-5)


@needs_mosaic
@pytest.mark.parametrize("shape", UPDATED.values(), ids=UPDATED)
def test_matches_the_twin_with_an_update(shape: tuple[int, int, int, int]) -> None:
    races = pytest.importorskip("jax._src.pallas.mosaic_gpu.interpret.interpret_pallas_call")
    check_updated(shape, "bfloat16", True)
    assert not races.get_races().races_found


@needs_mosaic
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("shape", REAL.values(), ids=REAL)
def test_matches_the_twin_with_an_update_on_a_gpu(
    shape: tuple[int, int, int, int], dtype: str
) -> None:
    check_updated(shape, dtype, False)


@needs_mosaic
@pytest.mark.parametrize("interpret", ON)
def test_rows_without_an_adapter_read_none(interpret: bool) -> None:
    x, y = (noise(seed, 4, 1024, dtype="bfloat16") for seed in (0, 1))
    weight = noise(2, 1024, dtype="bfloat16")
    nothing = Update(
        jnp.full((4, 1, 2, 8), jnp.nan, x.dtype),
        jnp.full((2, 8, 1024), jnp.nan, x.dtype),
        jnp.full(4, 2, jnp.int32),
    )
    run = jax.jit(functools.partial(add_rms_norm, eps=1e-5, interpret=interpret))
    plain, updated = run(x, y, weight), run(x, y, weight, update=nothing)
    np.testing.assert_array_equal(np.asarray(plain[0]), np.asarray(updated[0]))
    # the order of the sum is another one
    wide = (np.asarray(a[1], np.float32) for a in (updated, plain))
    np.testing.assert_allclose(*wide, rtol=2 * float(jnp.finfo(x.dtype).eps))


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
