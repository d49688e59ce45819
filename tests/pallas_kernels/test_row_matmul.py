"""Products of one row against their twins: interpreted anywhere, compiled on a GPU."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quire.pallas_kernels import block_reference, row_matmul
from quire.pallas_kernels.row_matmul import (
    Plan,
    gated_matmul,
    matmul,
    norm_gated_matmul,
    norm_matmul,
    plan,
)

needs_mosaic = pytest.mark.skipif(
    jax.__version_info__ < (0, 11, 2), reason="Mosaic kernels need jax 0.11.2"
)
REAL = [
    (6144, 4096),
    (4096, 14336),
    (3072, 4096),
    (4096, 2048),
    (4096, 7168),
    (8192, 8192),
    (1001, 1024),  # an odd number of columns
    (4600, 3072),
    (3584, 3584),
]


def normal(*shape: int, dtype: Any, seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def check(out: int, width: int, dtype: str, interpret: bool) -> None:
    x, w = (
        normal(1, width, dtype=dtype, seed=0),
        normal(2, out, width, dtype=dtype, seed=1) * width**-0.5,
    )
    run = jax.jit(functools.partial(matmul, interpret=interpret))
    assert_close(run(x, w[0]), block_reference.matmul(x, w[0]))
    for activation in ("silu", "gelu_tanh"):
        run = jax.jit(functools.partial(gated_matmul, activation=activation, interpret=interpret))
        assert_close(run(x, w), block_reference.gated_matmul(x, w, activation=activation))
    check_norms(x, w, interpret)


def check_norms(x: jax.Array, w: jax.Array, interpret: bool) -> None:
    width, dtype = w.shape[-1], w.dtype
    y, weight = normal(1, width, dtype=dtype, seed=2), normal(width, dtype=dtype, seed=3)
    options: dict[str, Any] = {"eps": 1e-5}
    for run, twin, matrix in (
        (norm_matmul, block_reference.norm_matmul, w[0]),
        (norm_gated_matmul, block_reference.norm_gated_matmul, w),
    ):
        got = jax.jit(functools.partial(run, interpret=interpret, **options))(x, y, weight, matrix)
        want = jax.jit(functools.partial(twin, **options))(x, y, weight, matrix)
        np.testing.assert_array_equal(got[0], want[0])
        assert_close(got[1], want[1], atol=1e-2)  # norms may differ by the last bit
        options["activation"] = "silu"


def assert_close(got: jax.Array, want: jax.Array, atol: float = 2e-3) -> None:
    """Sums of the same products in another order, rounded to the 16-bit type."""
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    values = (np.asarray(y, np.float32) for y in (got, want))
    np.testing.assert_allclose(*values, rtol=2.0 ** -jnp.finfo(got.dtype).nmant, atol=atol)


@needs_mosaic
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("out", "width"), [(40, 1024), (13, 1024), (3, 2048), (5, 1536)])
def test_matches_the_twins_interpreted(
    monkeypatch: pytest.MonkeyPatch, out: int, width: int, dtype: str
) -> None:
    monkeypatch.setattr(row_matmul, "_SMS", 1)  # several batches for each block
    monkeypatch.setattr(row_matmul, "plan", row_matmul.plan.__wrapped__)
    check(out, width, dtype, interpret=True)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("out", "width"), [s for s in REAL if plan(2, *s, "bfloat16")])
def test_matches_the_twins(out: int, width: int, dtype: str) -> None:
    check(out, width, dtype, interpret=False)


@pytest.mark.gpu
def test_wide_rows_match_the_twin() -> None:
    out, width = 4096, 14336
    x = normal(1, width, dtype="bfloat16", seed=0)
    w = normal(out, width, dtype="bfloat16", seed=1) * jnp.bfloat16(width**-0.5)
    assert_close(jax.jit(matmul)(x, w), block_reference.matmul(x, w))


@pytest.mark.parametrize(
    ("shape", "chosen"),
    [
        ((1, 6144, 4096, "bfloat16"), Plan(2, 132 * 3, 8)),
        ((2, 14336, 4096, "bfloat16"), Plan(1, 132 * 3, 8)),
        ((1, 4096, 14336, "float16"), Plan(1, 132 * 2, 8)),
        ((1, 20, 1024, "bfloat16"), Plan(4, 5, 8)),
        ((1, 4096, 3584, "bfloat16"), Plan(2, 132 * 4, 4)),
        ((1, 4096, 3840 + 128, "bfloat16"), None),  # not whole vectors of all threads
        ((1, 4096, 4096, "float32"), None),
        ((2, 4096, 14336, "bfloat16"), None),  # more than a thread has registers for
    ],
)
def test_which_plan_is_chosen(shape: tuple[int, int, int, str], chosen: Plan | None) -> None:
    assert plan(*shape) == chosen


def test_norms_of_wide_rows_leave_room_for_fewer_blocks() -> None:
    shape = 1, 8192, 8192, "bfloat16"
    blocks = [plan(*shape, normed_over=gpus) for gpus in (0, 1, 2, 4)]
    assert [chosen and chosen.blocks for chosen in blocks] == [132 * 3, 132 * 2, 132 * 2, 132 * 2]
    assert plan(1, 6144, 4096, "bfloat16", normed_over=4) == plan(1, 6144, 4096, "bfloat16")
