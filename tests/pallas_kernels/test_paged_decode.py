"""The decode kernel against its twin: interpreted anywhere, compiled on a GPU."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quire.pallas_kernels import reference
from quire.pallas_kernels.paged_decode import paged_decode

ON = [pytest.param(True, id="interpreted"), pytest.param(False, id="gpu", marks=pytest.mark.gpu)]
STATIC = ("scale", "window", "soft_cap", "split_tokens", "interpret")
TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 2e-2}
LENGTHS = [1, 0, 127, 128, 129, 300, 16, 17]

kernel = jax.jit(paged_decode, static_argnames=STATIC)
twin = jax.jit(reference.paged_decode, static_argnames=STATIC[:3])


class Case(NamedTuple):
    """The arrays of a call; the pool is NaN outside the tokens of the rows."""

    q: jax.Array
    k_pool: jax.Array
    v_pool: jax.Array
    page_table: jax.Array
    lengths: jax.Array

    def rows(self, *rows: int) -> "Case":
        at = np.array(rows)
        return self._replace(q=self.q[at], page_table=self.page_table[at], lengths=self.lengths[at])


def make_case(
    lengths: list[int],
    *,
    dtype: str = "float32",
    page: int = 16,
    columns: int | None = None,
    kv_heads: int = 2,
    groups: int = 2,
    width: int = 64,
) -> Case:
    rng = np.random.default_rng(0)
    needed = [-(-length // page) for length in lengths]
    free = rng.permutation(sum(needed)) + 1
    shape = (len(free) + 1, page, kv_heads, width)
    pools = np.full((2, *shape), np.nan, np.float32)
    table = np.zeros((len(lengths), columns or max(needed)), np.int32)
    for row, (length, count) in enumerate(zip(lengths, needed, strict=True)):
        table[row, :count], free = free[:count], free[count:]
        at = np.arange(length)
        values = rng.normal(size=(2, length, kv_heads, width))
        pools[:, table[row, at // page], at % page] = values
    q = rng.normal(size=(len(lengths), kv_heads * groups, width))
    q, k, v = (jnp.asarray(x, dtype) for x in (q, *pools))
    return Case(q, k, v, jnp.asarray(table), jnp.asarray(lengths, jnp.int32))


def check(case: Case, **options: Any) -> None:
    options = {"scale": 0.2, "split_tokens": 64} | options
    got = kernel(*case, **options)
    assert got.dtype == case.q.dtype
    exact = [case.q, case.k_pool, case.v_pool]
    exact = [x.astype(jnp.float32) for x in exact]
    shared = {name: value for name, value in options.items() if name in STATIC[:3]}
    want = twin(*exact, case.page_table, case.lengths, **shared)
    tolerance = TOLERANCE[case.q.dtype.name]
    np.testing.assert_allclose(
        np.asarray(got, np.float32), np.asarray(want), atol=tolerance, rtol=tolerance
    )


@pytest.mark.parametrize("interpret", ON)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("split_tokens", [64, 512])
def test_uneven_rows_match_the_twin(interpret: bool, dtype: str, split_tokens: int) -> None:
    check(make_case(LENGTHS, dtype=dtype), interpret=interpret, split_tokens=split_tokens)


@pytest.mark.parametrize("interpret", ON)
@pytest.mark.parametrize(
    "options",
    [
        {"window": 1},
        {"window": 37},
        {"window": 130},
        {"window": 1000},
        {"soft_cap": 2.0},
        {"window": 150, "soft_cap": 0.5, "scale": 1.0},
    ],
    ids=str,
)
def test_options_match_the_twin(interpret: bool, options: dict[str, Any]) -> None:
    check(make_case(LENGTHS), interpret=interpret, **options)


@pytest.mark.parametrize("interpret", ON)
@pytest.mark.parametrize(("groups", "width"), [(1, 128), (3, 256), (8, 128), (16, 64)])
def test_head_shapes_match_the_twin(interpret: bool, groups: int, width: int) -> None:
    check(make_case([5, 140], groups=groups, width=width), interpret=interpret)


@pytest.mark.parametrize("interpret", ON)
@pytest.mark.parametrize(("page", "columns"), [(8, 21), (16, 13), (128, 2), (256, 1)])
def test_page_sizes_match_the_twin(interpret: bool, page: int, columns: int) -> None:
    """Tables whose tokens are not whole blocks, and pages larger than a block."""
    check(make_case([1, page, 150, 160], page=page, columns=columns), interpret=interpret)


@pytest.mark.parametrize("interpret", ON)
def test_rows_without_tokens_are_zero(interpret: bool) -> None:
    case = make_case([0, 40, 0], columns=20)
    for split_tokens in (64, 512):
        out = kernel(*case, scale=0.2, split_tokens=split_tokens, interpret=interpret)
        assert not out[0].any()
        assert out[1].all()
        assert not out[2].any()


@pytest.mark.parametrize("interpret", ON)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_is_the_same_alone_and_in_a_batch(interpret: bool, dtype: str) -> None:
    case = make_case(LENGTHS, dtype=dtype)
    run = functools.partial(kernel, scale=0.2, split_tokens=64, interpret=interpret)
    together = np.asarray(run(*case))
    for row in (0, 2, 5):
        np.testing.assert_array_equal(np.asarray(run(*case.rows(row)))[0], together[row])


@pytest.mark.gpu
def test_long_rows_match_the_twin_in_bfloat16() -> None:
    case = make_case(
        [10_000, 1, 0, 777, 640, 641],
        dtype="bfloat16",
        columns=640,
        kv_heads=8,
        groups=4,
        width=128,
    )
    check(case, split_tokens=512)
    check(case, split_tokens=512, window=4096)
