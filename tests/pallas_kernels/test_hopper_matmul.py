"""The Hopper products against their twins: interpreted anywhere, compiled on a GPU."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quire.pallas_kernels import block_reference, matmul_tiles
from quire.pallas_kernels.hopper_matmul import fits, gated_matmul, joint_fits, joint_matmul, matmul
from quire.pallas_kernels.matmul_tiles import Tuning

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

JOINT_TUNINGS = [Tuning(1, 48), Tuning(1, 32, depth=256, stages=3), Tuning(1, 56, depth=128)]


def normal(*shape: int, dtype: Any = "bfloat16", seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@functools.lru_cache(maxsize=1)
def weights(out: int, width: int, dtype: Any = "bfloat16") -> jax.Array:
    return normal(2, out, width, dtype=dtype, seed=2) * jnp.asarray(width**-0.5, dtype)


def assert_close(got: jax.Array, want: jax.Array) -> None:
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    # sums of the same products in another order, and rounded
    bits = jnp.finfo(got.dtype).nmant
    values = [np.asarray(y, np.float32) for y in (got, want)]
    np.testing.assert_allclose(*values, rtol=2.0**-bits, atol=2e-3)


def update(tokens: int, out: int, low: int, dtype: Any = "bfloat16") -> tuple[jax.Array, ...]:
    """h and b of K = low, none if that is 0."""
    b = normal(2, out, low, dtype=dtype, seed=4) * jnp.asarray(max(low, 1) ** -0.5, dtype)
    return (normal(tokens, low, dtype=dtype, seed=3), b) if low else ()


def check(
    tokens: int,
    out: int,
    width: int,
    activation: str = "silu",
    *,
    low: int = 0,
    dtype: str = "bfloat16",
    **options: Any,
) -> None:
    x, w = normal(tokens, width, dtype=dtype, seed=1), weights(out, width, dtype)
    more = update(tokens, out, low, dtype)
    run = functools.partial(gated_matmul, activation=activation, **options)
    got = run(x, w, *more) if options.get("interpret") else jax.jit(run)(x, w, *more)
    assert_close(got, block_reference.gated_matmul(x, w, *more, activation=activation))


def check_joint(
    tokens: int, out: int, low: int, width: int, *, dtype: str = "bfloat16", **options: Any
) -> None:
    x = normal(tokens, width, dtype=dtype, seed=1)
    w, a = (
        normal(rows, width, dtype=dtype, seed=rows) * jnp.asarray(width**-0.5, dtype)
        for rows in (out, low)
    )
    run = functools.partial(joint_matmul, **options)
    got = run(x, w, a) if options.get("interpret") else jax.jit(run)(x, w, a)
    for result, want in zip(got, block_reference.joint_matmul(x, w, a), strict=True):
        assert_close(result, want)


def check_alone(
    tokens: int, out: int, width: int, *, dtype: str = "bfloat16", **options: Any
) -> None:
    x = normal(tokens, width, dtype=dtype, seed=1)
    w = normal(out, width, dtype=dtype, seed=2) * jnp.asarray(width**-0.5, dtype)
    run = functools.partial(matmul, **options)
    got = run(x, w) if options.get("interpret") else jax.jit(run)(x, w)
    assert_close(got, block_reference.matmul(x, w))


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
        (20, 64, 128, "silu", {"tuning": Tuning(1, 64), "low": 16}),
        (9, 64, 128, "gelu_tanh", {"tuning": Tuning(1, 64, stages=2), "low": 136}),
        (130, 64, 256, "silu", {"tuning": Tuning(2, 64, depth=128), "low": 72}),
        (64, 64, 128, "silu", {"tuning": Tuning(1, 64), "low": 64, "dtype": "float16"}),
    ],
)
def test_interpreted_matches_the_twin(
    tokens: int, out: int, width: int, activation: str, options: dict[str, Any]
) -> None:
    check(tokens, out, width, activation, interpret=True, **options)


@needs_mosaic
@pytest.mark.parametrize(
    ("tokens", "out", "low", "width", "options"),
    [
        (20, 96, 16, 128, {"tuning": Tuning(1, 32)}),
        (50, 64, 40, 256, {"tuning": Tuning(1, 40, depth=128)}),
        (9, 48, 48, 192, {"tuning": Tuning(1, 48, stages=2), "dtype": "float16"}),
        (64, 128, 16, 256, {}),
    ],
)
def test_interpreted_joint_product_matches_the_twin(
    tokens: int, out: int, low: int, width: int, options: dict[str, Any]
) -> None:
    check_joint(tokens, out, low, width, interpret=True, **options)


@needs_mosaic
@pytest.mark.parametrize(
    ("tokens", "out", "width", "options"),
    [
        (50, 64, 256, {"tuning": Tuning(1, 32, depth=128)}),
        (9, 48, 192, {"tuning": Tuning(1, 48, stages=2), "dtype": "float16"}),
        (64, 128, 256, {}),
    ],
)
def test_interpreted_product_matches_the_twin(
    tokens: int, out: int, width: int, options: dict[str, Any]
) -> None:
    check_alone(tokens, out, width, interpret=True, **options)


@needs_mosaic
@pytest.mark.parametrize("low", [0, 72])
@pytest.mark.parametrize("tuning", [Tuning(2, 64), Tuning(1, 64, stages=2)], ids=str)
def test_thread_blocks_with_many_tiles_do_not_race(
    tuning: Tuning, low: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    races = pytest.importorskip("jax._src.pallas.mosaic_gpu.interpret.interpret_pallas_call")
    monkeypatch.setattr(matmul_tiles, "_SMS", 2)
    monkeypatch.setattr(matmul_tiles, "_SWEEP", 2)
    check(300, 128, 192, low=low, tuning=tuning, interpret=True)
    assert not races.get_races().races_found


@needs_mosaic
def test_a_joint_product_does_not_race() -> None:
    races = pytest.importorskip("jax._src.pallas.mosaic_gpu.interpret.interpret_pallas_call")
    check_joint(60, 64, 16, 320, tuning=Tuning(1, 32, stages=2), interpret=True)
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
@pytest.mark.parametrize("low", [8, 40, 128])
def test_updates_match_the_twin(tuning: Tuning, low: int) -> None:
    check(64, 2048, 1024, low=low, tuning=tuning)
    check(1001, 1024, 512, "gelu_tanh", low=low, dtype="float16", tuning=tuning)


@needs_mosaic
@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [12, 64, 128, 192, 256, 512, 8192])
@pytest.mark.parametrize("low", [32, 256])
def test_updates_of_models_match_the_twin(tokens: int, low: int) -> None:
    assert fits(tokens, 14336, 4096, jnp.bfloat16, low=low)
    check(tokens, 14336, 4096, low=low)


@needs_mosaic
@pytest.mark.gpu
@pytest.mark.parametrize("low", [0, 40])
@pytest.mark.parametrize("tuning", TUNINGS, ids=str)
def test_a_row_does_not_depend_on_the_others(tuning: Tuning, low: int) -> None:
    x, w, more = normal(640, 1024), weights(2048, 1024), update(640, 2048, low)
    run = jax.jit(functools.partial(gated_matmul, activation="silu", tuning=tuning))
    want = run(x, w, *more)
    with_nan = [a.at[200:].set(jnp.nan) for a in (x, *more[:1])]
    few = [a[:200] for a in (x, *more[:1])]
    np.testing.assert_array_equal(run(with_nan[0], w, *with_nan[1:], *more[1:])[:200], want[:200])
    np.testing.assert_array_equal(run(few[0], w, *few[1:], *more[1:]), want[:200])
    for _ in range(20):
        np.testing.assert_array_equal(run(x, w, *more), want)


@needs_mosaic
@pytest.mark.gpu
@pytest.mark.parametrize("tuning", JOINT_TUNINGS, ids=str)
@pytest.mark.parametrize("tokens", [9, 64])
def test_joint_tunings_match_the_twin(tuning: Tuning, tokens: int) -> None:
    check_joint(tokens, 2048, 8, 1024, tuning=tuning)
    check_joint(tokens, 1024, 64, 2048, dtype="float16", tuning=tuning)


@needs_mosaic
@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [12, 64])
@pytest.mark.parametrize(
    ("out", "low", "width"),
    [
        (6144, 48, 4096),
        (6144, 384, 4096),
        (4096, 16, 4096),
        (4096, 128, 4096),
        (4096, 16, 14336),
        (4096, 512, 14336),
    ],
)
def test_joint_products_of_models_match_the_twin(
    tokens: int, out: int, low: int, width: int
) -> None:
    check_joint(tokens, out, low, width)


@needs_mosaic
@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [12, 64])
@pytest.mark.parametrize(("out", "width"), [(6144, 4096), (4096, 4096), (4096, 14336)])
def test_products_of_models_match_the_twin(tokens: int, out: int, width: int) -> None:
    check_alone(tokens, out, width)


@needs_mosaic
@pytest.mark.gpu
@pytest.mark.parametrize("tuning", JOINT_TUNINGS, ids=str)
def test_a_row_of_a_joint_product_does_not_depend_on_the_others(tuning: Tuning) -> None:
    x, w, a = normal(64, 1024), normal(2048, 1024, seed=1), normal(64, 1024, seed=2)
    run = jax.jit(functools.partial(joint_matmul, tuning=tuning))
    want = run(x, w, a)
    for result, expected in zip(run(x.at[20:].set(jnp.nan), w, a), want, strict=True):
        np.testing.assert_array_equal(result[:20], expected[:20])
    for _ in range(20):
        for result, expected in zip(run(x, w, a), want, strict=True):
            np.testing.assert_array_equal(result, expected)


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


def test_fits_updates_of_whole_copies() -> None:
    assert fits(64, 14336, 4096, jnp.bfloat16, low=24)
    assert not fits(64, 14336, 4096, jnp.bfloat16, low=20)


@pytest.mark.parametrize(
    ("tokens", "out", "low", "width", "dtype", "want"),
    [
        (64, 6144, 48, 4096, jnp.bfloat16, True),
        (9, 4096, 16, 14336, jnp.float16, True),
        (64, 4096, 0, 14336, jnp.bfloat16, True),
        (65, 4096, 128, 4096, jnp.bfloat16, False),
        (8, 4096, 16, 4096, jnp.bfloat16, False),
        (64, 4096, 16, 4096, jnp.float32, False),
        (64, 4096, 12, 4096, jnp.bfloat16, False),
        (64, 4100, 16, 4096, jnp.bfloat16, False),
        (64, 4096, 16, 4100, jnp.bfloat16, False),
        (64, 128256, 16, 4096, jnp.bfloat16, False),
    ],
)
def test_joint_fits(tokens: int, out: int, low: int, width: int, dtype: Any, want: bool) -> None:
    assert joint_fits(tokens, out, low, width, dtype) is want


@pytest.mark.parametrize(("out", "width"), [(6144, 4096), (4096, 4096), (4096, 14336)])
def test_joint_tiles_keep_the_gpu_busy_at_once(out: int, width: int) -> None:
    for low in (0, 16, 48, 128, 384):
        plan = matmul_tiles.joint_plan(64, out, width, low)
        assert plan is not None
        assert plan.waves == 1
        assert plan.clusters > 100
