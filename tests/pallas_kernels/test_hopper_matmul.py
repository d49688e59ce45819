"""The Hopper product of few rows against its twin: interpreted anywhere, compiled on a GPU."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quire.pallas_kernels import hopper_matmul, reference
from quire.pallas_kernels.hopper_matmul import Tuning

needs_mosaic = pytest.mark.skipif(
    jax.__version_info__ < (0, 11, 2),
    reason=f"Pallas of jax {jax.__version__} lacks what the kernel needs; 0.11.2 has it",
)

CLUSTERS = [
    Tuning(32),
    Tuning(64, depth=128, stages=2),
    Tuning(32, cluster=2, rotate=True),
    Tuning(64, cluster=4),
    Tuning(64, cluster=2, split=True),
    Tuning(128, cluster=4, split=True, rotate=True),
    Tuning(128, cluster=4, split=True, early=True),
    Tuning(128, cluster=8, split=True),
]


def normal(*shape: int, dtype: Any = "bfloat16", seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def check(got: jax.Array, want: jax.Array) -> None:
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    # sums of the same products in another order, and rounded
    bits = min(jnp.finfo(got.dtype).nmant, 16)
    values = [np.asarray(y, np.float32) for y in (got, want)]
    np.testing.assert_allclose(*values, rtol=2.0**-bits, atol=2e-3)


def check_matmul(
    tokens: int,
    out: int,
    width: int,
    *,
    dtype: str = "bfloat16",
    out_dtype: Any = None,
    residual: bool = False,
    **options: Any,
) -> None:
    x = normal(tokens, width, dtype=dtype, seed=1)
    w = normal(out, width, dtype=dtype, seed=2)
    r = normal(tokens, out, dtype=out_dtype or dtype, seed=3) if residual else None
    run = functools.partial(hopper_matmul.matmul, out_dtype=out_dtype, **options)
    run = run if options.get("interpret") else jax.jit(run)
    check(run(x, w, residual=r), reference.matmul(x, w, residual=r, out_dtype=out_dtype))


def check_gated(
    tokens: int, out: int, width: int, activation: str, *, dtype: str = "bfloat16", **options: Any
) -> None:
    x = normal(tokens, width, dtype=dtype, seed=1)
    w = normal(2, out, width, dtype=dtype, seed=2) * jnp.asarray(width**-0.5, dtype)
    run = functools.partial(hopper_matmul.gated_matmul, activation=activation, **options)
    run = run if options.get("interpret") else jax.jit(run)
    check(run(x, w), reference.gated_matmul(x, w, activation=activation))


@needs_mosaic
@pytest.mark.parametrize(
    ("tokens", "out", "width", "options"),
    [
        (16, 64, 256, {"tuning": Tuning(32, stages=2)}),
        (9, 48, 128, {"tuning": Tuning(48), "residual": True}),
        (64, 32, 192, {"tuning": Tuning(16, stages=2, rotate=True), "dtype": "float16"}),
        (100, 32, 128, {"tuning": Tuning(32), "residual": True, "out_dtype": jnp.float32}),
        (12, 24, 256, {"tuning": Tuning(24, depth=128), "out_dtype": jnp.float32}),
        (16, 64, 128, {"tuning": None}),
    ],
)
def test_interpreted_matches_the_twin(
    tokens: int, out: int, width: int, options: dict[str, Any]
) -> None:
    check_matmul(tokens, out, width, interpret=True, **options)


@needs_mosaic
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_interpreted_gate_matches_the_twin(activation: str) -> None:
    check_gated(20, 32, 128, activation, tuning=Tuning(32), interpret=True)


@needs_mosaic
def test_no_access_to_shared_memory_races() -> None:
    races = pytest.importorskip("jax._src.pallas.mosaic_gpu.interpret.interpret_pallas_call")
    tuning = Tuning(32, stages=2)
    check_matmul(80, 64, 320, tuning=tuning, residual=True, interpret=True)
    assert not races.get_races().races_found


@needs_mosaic
@pytest.mark.gpu
@pytest.mark.parametrize("tuning", CLUSTERS, ids=str)
@pytest.mark.parametrize("tokens", [9, 16, 63, 64, 65, 128])
def test_ways_to_cluster_match_the_twin(tuning: Tuning, tokens: int) -> None:
    check_matmul(tokens, 1024, 2048, tuning=tuning)
    check_matmul(tokens, 256, 1024, tuning=tuning, residual=True, dtype="float16")
    check_matmul(tokens, 256, 1024, tuning=tuning, residual=True, out_dtype=jnp.float32)
    check_gated(tokens, 512, 1024, "silu", tuning=tuning)
    check_gated(tokens, 512, 1024, "gelu_tanh", tuning=tuning, dtype="float16")


@needs_mosaic
@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [12, 24, 64, 96, 128])
@pytest.mark.parametrize(
    ("out", "width"), [(6144, 4096), (4096, 4096), (4096, 14336), (5120, 5120), (9216, 3584)]
)
def test_shapes_of_models_match_the_twin(tokens: int, out: int, width: int) -> None:
    assert hopper_matmul.fits(tokens, out, width, jnp.bfloat16)
    check_matmul(tokens, out, width, residual=True)
    check_gated(tokens, 14336, width, "silu")


@needs_mosaic
@pytest.mark.gpu
@pytest.mark.parametrize("tuning", CLUSTERS, ids=str)
def test_a_row_does_not_depend_on_the_others(tuning: Tuning) -> None:
    x, w = normal(64, 1024), normal(1024, 1024, seed=1)
    run = jax.jit(functools.partial(hopper_matmul.matmul, tuning=tuning))
    want = run(x, w)
    with_nan = x.at[20:].set(jnp.nan)
    np.testing.assert_array_equal(run(with_nan, w)[:20], want[:20])
    np.testing.assert_array_equal(run(x[:20], w), want[:20])
    for _ in range(20):
        np.testing.assert_array_equal(run(x, w), want)


@pytest.mark.parametrize(
    ("tokens", "out", "width", "dtype", "gated", "want"),
    [
        (64, 4096, 14336, jnp.bfloat16, False, True),
        (9, 14336, 4096, jnp.float16, True, True),
        (8, 4096, 4096, jnp.bfloat16, False, False),
        (129, 4096, 4096, jnp.bfloat16, False, False),
        (64, 4096, 4096, jnp.float32, False, False),
        (64, 4096, 4100, jnp.bfloat16, False, False),
        (64, 4100, 4096, jnp.bfloat16, False, False),
        (64, 64, 64, jnp.bfloat16, False, False),
    ],
)
def test_fits(tokens: int, out: int, width: int, dtype: Any, gated: bool, want: bool) -> None:
    assert hopper_matmul.fits(tokens, out, width, dtype, gated=gated) is want


def test_the_twin_is_the_obvious_product() -> None:
    x, w, r = normal(3, 64), normal(32, 64, seed=1), normal(3, 32, seed=2)
    exact = [np.asarray(a, np.float64) for a in (x, w, r)]
    want = exact[0] @ exact[1].T
    got = reference.matmul(x, w, out_dtype=jnp.float32)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    got = reference.matmul(x, w, residual=r)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(got, np.float64), want + exact[2], rtol=2**-8)
    gate, up = want[:, :16], want[:, 16:]
    got = reference.gated_matmul(x, w.reshape(2, 16, 64), activation="silu")
    want = gate / (1 + np.exp(-gate)) * up
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=2**-7, atol=1e-6)
