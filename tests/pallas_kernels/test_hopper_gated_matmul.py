"""The Hopper gated product against its twin: interpreted anywhere, compiled on a GPU."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quire.pallas_kernels import block_reference, hopper_gated_matmul
from quire.pallas_kernels.hopper_gated_matmul import Tuning, fits, gated_matmul

needs_mosaic = pytest.mark.skipif(
    jax.__version_info__ < (0, 11, 2), reason="Mosaic kernels need jax 0.11.2"
)

TUNINGS = [
    Tuning(2, 128),
    Tuning(2, 128, "w"),
    Tuning(2, 128, "x", stages=2),
    Tuning(2, 64, "w"),
    Tuning(3, 64, "x"),
    Tuning(3, 128, "w"),
    Tuning(1, 112, depth=128),
    Tuning(2, 72, depth=128),
]


def normal(*shape: int, dtype: Any = "bfloat16", seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@functools.lru_cache(maxsize=1)
def weights(out: int, width: int, dtype: Any = "bfloat16") -> jax.Array:
    return normal(2, out, width, dtype=dtype, seed=2) * jnp.asarray(width**-0.5, dtype)


def check(
    tokens: int,
    out: int,
    width: int,
    activation: str = "silu",
    *,
    dtype: str = "bfloat16",
    **options: Any,
) -> None:
    x, w = normal(tokens, width, dtype=dtype, seed=1), weights(out, width, dtype)
    run = functools.partial(gated_matmul, activation=activation, **options)
    got = run(x, w) if options.get("interpret") else jax.jit(run)(x, w)
    want = block_reference.gated_matmul(x, w, activation=activation)
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    # sums of the same products in another order, and rounded
    bits = jnp.finfo(got.dtype).nmant
    values = [np.asarray(y, np.float32) for y in (got, want)]
    np.testing.assert_allclose(*values, rtol=2.0**-bits, atol=2e-3)


@needs_mosaic
@pytest.mark.parametrize(
    ("tokens", "out", "width", "activation", "options"),
    [
        (130, 128, 128, "silu", {"tuning": Tuning(2, 64)}),
        (256, 128, 192, "gelu_tanh", {"tuning": Tuning(2, 128, stages=2)}),
        (129, 112, 128, "gelu_tanh", {"tuning": Tuning(2, 112), "dtype": "float16"}),
        (136, 64, 128, "silu", {"tuning": Tuning(3, 64)}),
        (200, 64, 128, "silu", {"tuning": Tuning(2, 64, depth=64)}),
        (9, 128, 512, "silu", {"tuning": Tuning(1, 64, depth=128)}),
    ],
)
def test_interpreted_matches_the_twin(
    tokens: int, out: int, width: int, activation: str, options: dict[str, Any]
) -> None:
    check(tokens, out, width, activation, interpret=True, **options)


@needs_mosaic
@pytest.mark.parametrize("tuning", [Tuning(2, 64), Tuning(1, 64, stages=2)], ids=str)
def test_thread_blocks_with_many_tiles_do_not_race(
    tuning: Tuning, monkeypatch: pytest.MonkeyPatch
) -> None:
    races = pytest.importorskip("jax._src.pallas.mosaic_gpu.interpret.interpret_pallas_call")
    monkeypatch.setattr(hopper_gated_matmul, "_SMS", 2)
    monkeypatch.setattr(hopper_gated_matmul, "_SWEEP", 2)
    check(300, 192, 192, tuning=tuning, interpret=True)
    assert not races.get_races().races_found


@needs_mosaic
@pytest.mark.gpu
@pytest.mark.parametrize("tuning", TUNINGS, ids=str)
@pytest.mark.parametrize("tokens", [9, 64, 129, 256, 1000])
def test_tunings_match_the_twin(tuning: Tuning, tokens: int) -> None:
    check(tokens, 2048, 1024, tuning=tuning)
    check(tokens, 1024, 512, "gelu_tanh", dtype="float16", tuning=tuning)


@needs_mosaic
@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [12, 64, 96, 128, 129, 192, 256, 320, 512, 2048, 8192])
@pytest.mark.parametrize(
    ("out", "width"), [(14336, 4096), (17408, 5120), (9216, 2304), (18944, 3584)]
)
def test_shapes_of_models_match_the_twin(tokens: int, out: int, width: int) -> None:
    assert fits(tokens, out, width, jnp.bfloat16)
    check(tokens, out, width)


@needs_mosaic
@pytest.mark.gpu
@pytest.mark.parametrize("tuning", TUNINGS, ids=str)
def test_a_row_does_not_depend_on_the_others(tuning: Tuning) -> None:
    x, w = normal(640, 1024), weights(2048, 1024)
    run = jax.jit(functools.partial(gated_matmul, activation="silu", tuning=tuning))
    want = run(x, w)
    with_nan = x.at[200:].set(jnp.nan)
    np.testing.assert_array_equal(run(with_nan, w)[:200], want[:200])
    np.testing.assert_array_equal(run(x[:200], w), want[:200])
    for _ in range(20):
        np.testing.assert_array_equal(run(x, w), want)


@needs_mosaic
@pytest.mark.gpu
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gates_far_from_zero_are_finite(activation: str) -> None:
    x = normal(256, 1024) * jnp.asarray(100, jnp.bfloat16)
    w = weights(1024, 1024)
    got = jax.jit(functools.partial(gated_matmul, activation=activation))(x, w)
    want = block_reference.gated_matmul(x, w, activation=activation)
    values = [np.asarray(y, np.float32) for y in (got, want)]
    np.testing.assert_allclose(*values, rtol=2**-7, atol=0.1)


@pytest.mark.parametrize(
    ("tokens", "out", "width", "dtype", "want"),
    [
        (8192, 14336, 4096, jnp.bfloat16, True),
        (129, 14336, 4096, jnp.float16, True),
        (333, 11008, 4096, jnp.bfloat16, True),
        (64, 18944, 3584, jnp.bfloat16, True),
        (8, 14336, 4096, jnp.bfloat16, False),
        (256, 14336, 4096, jnp.float32, False),
        (256, 14336, 4100, jnp.bfloat16, False),
        (256, 14340, 4096, jnp.bfloat16, False),
        (256, 14336, 64, jnp.bfloat16, False),
    ],
)
def test_fits(tokens: int, out: int, width: int, dtype: Any, want: bool) -> None:
    assert fits(tokens, out, width, dtype) is want
