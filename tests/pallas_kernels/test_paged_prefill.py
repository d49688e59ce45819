"""The prefill kernel against its twin."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quire.pallas_kernels import paged_prefill as kernel, reference

STATIC = ("scale", "window", "soft_cap", "interpret")
PLAIN: dict[str, Any] = {"scale": 0.2, "window": None, "soft_cap": None}
OPTIONS = [
    PLAIN,
    {"scale": 0.2, "window": 1, "soft_cap": None},
    {"scale": 0.2, "window": 37, "soft_cap": None},
    {"scale": 0.5, "window": 150, "soft_cap": 5.0},
    {"scale": 0.2, "window": None, "soft_cap": 2.0},
]
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 3e-3}
BACKENDS = [
    "interpret",
    pytest.param(
        "gpu",
        marks=[
            pytest.mark.gpu,
            pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated"),
        ],
    ),
]


@pytest.fixture(params=BACKENDS)
def interpret(request: pytest.FixtureRequest) -> bool:
    return request.param == "interpret"


def make_case(
    lengths: list[int],
    counts: list[int],
    *,
    kv_heads: int = 2,
    groups: int = 2,
    width: int = 64,
    page: int = 16,
    tokens: int | None = None,
    dtype: str = "float32",
) -> tuple[jax.Array, ...]:
    """Rows with `lengths` tokens, of which the last `counts` are queries, in a pool full of NaN."""
    rng = np.random.default_rng(0)
    needed = [-(-length // page) for length in lengths]
    pages = rng.permutation(sum(needed) + 5) + 1
    pools = np.full((2, len(pages) + 1, page, kv_heads, width), np.nan, np.float32)
    # the spare entries of a row name a page of NaN
    table = np.full((len(lengths), max(needed) + 2), pages[-1], np.int32)
    for row, (length, count) in enumerate(zip(lengths, needed, strict=True)):
        table[row, :count], pages = pages[:count], pages[count:]
        at = np.arange(length)
        values = rng.normal(size=(2, length, kv_heads, width))
        pools[:, table[row, at // page], at % page] = values
    q = rng.normal(size=(tokens or sum(counts), kv_heads * groups, width))
    starts = np.concatenate([[0], np.cumsum(counts)])
    floats = (jnp.asarray(x, dtype) for x in (q, *pools))
    return *floats, *(jnp.asarray(x, jnp.int32) for x in (table, lengths, starts))


@functools.partial(jax.jit, static_argnames=STATIC)
def prefill(*args: jax.Array, **options: Any) -> jax.Array:
    return kernel.paged_prefill(*args, **options)


@functools.partial(jax.jit, static_argnames=STATIC)
def twin(*args: jax.Array, **options: Any) -> jax.Array:
    return reference.paged_prefill(*args, **options)


def check(case: tuple[jax.Array, ...], interpret: bool, **options: Any) -> np.ndarray:
    got = prefill(*case, **options, interpret=interpret)
    assert got.dtype == case[0].dtype
    wide = [x.astype(jnp.float32) for x in case[:3]]
    expected = np.asarray(twin(*wide, *case[3:], **options))
    tolerance = TOLERANCE[got.dtype.name]
    result = np.asarray(got, np.float32)
    np.testing.assert_allclose(result, expected, atol=tolerance, rtol=tolerance)
    return result


@pytest.mark.parametrize("options", OPTIONS)
def test_uneven_rows_continued_chunks_and_single_queries(
    interpret: bool, options: dict[str, Any]
) -> None:
    check(make_case([1, 200, 90, 33, 140], [1, 1, 90, 30, 77]), interpret, **options)


@pytest.mark.parametrize(
    ("dtype", "options"), [("bfloat16", PLAIN), ("bfloat16", OPTIONS[3]), ("float16", OPTIONS[3])]
)
def test_sixteen_bits(interpret: bool, dtype: str, options: dict[str, Any]) -> None:
    check(make_case([1, 200, 90, 340], [1, 1, 90, 277], dtype=dtype), interpret, **options)


@pytest.mark.parametrize(("kv_heads", "groups"), [(2, 1), (2, 3), (2, 4), (1, 8), (1, 16)])
def test_any_grouping_of_heads(interpret: bool, kv_heads: int, groups: int) -> None:
    case = make_case([140, 7, 30], [20, 7, 1], kv_heads=kv_heads, groups=groups, dtype="bfloat16")
    check(case, interpret, **OPTIONS[2])


@pytest.mark.parametrize("width", [128, 256])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_head_sizes(interpret: bool, dtype: str, width: int) -> None:
    options = {**PLAIN, "scale": width**-0.5}
    check(make_case([150, 7], [140, 3], width=width, dtype=dtype), interpret, **options)


@pytest.mark.parametrize("page", [8, 128])
def test_page_sizes(interpret: bool, page: int) -> None:
    check(make_case([150, 7], [140, 3], page=page), interpret, **OPTIONS[2])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_padding_rows_and_tokens_give_zeros(interpret: bool, dtype: str) -> None:
    case = make_case([40, 9, 0, 0], [30, 1, 0, 0], tokens=200, dtype=dtype)
    result = check(case, interpret, **PLAIN)
    np.testing.assert_array_equal(result[31:], 0)


def test_no_rows_at_all_give_zeros(interpret: bool) -> None:
    result = check(make_case([0, 0], [0, 0], tokens=70), interpret, **PLAIN)
    np.testing.assert_array_equal(result, 0)


def test_rows_that_end_at_the_bounds_of_tiles_and_blocks(interpret: bool) -> None:
    lengths, counts = [64, 65, 128, 129, 63], [64, 1, 64, 65, 63]
    check(make_case(lengths, counts, groups=1, dtype="bfloat16"), interpret, **PLAIN)


@pytest.mark.parametrize("size", [1, 4, 32])
@pytest.mark.parametrize("counts", [[0, 5, 1, 0, 33, 32, 1], [1] * 12, [64, 0, 0], [0]])
def test_tiles_cover_every_token_once_in_its_row(counts: list[int], size: int) -> None:
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    lengths, total = np.asarray(counts, np.int32) + 10, int(starts[-1]) + 7
    table = np.asarray(kernel.tiles(jnp.asarray(starts), jnp.asarray(lengths), total, size))
    assert len(table) == total // size + len(counts) + 1
    covered = []
    for row, token, count, first in table[table[:, 2] > 0]:
        covered += range(token, token + count)
        assert count <= size
        if token < starts[-1]:
            assert starts[row] <= token < token + count <= starts[row + 1]
            assert first == lengths[row] - starts[row + 1] + token
        else:
            assert first + count <= 0
    assert sorted(covered) == list(range(total))


def test_tiles_with_most_keys_come_first() -> None:
    table = kernel.tiles(jnp.asarray([0, 1, 65]), jnp.asarray([500, 64]), 70, 32)
    np.testing.assert_array_equal(table[:3], [[0, 0, 1, 499], [1, 33, 32, 32], [1, 1, 32, 0]])


def test_keys_that_left_the_window_may_be_nan(interpret: bool) -> None:
    q, k_pool, v_pool, table, *rest = make_case([200], [3])
    left = table[0, :9]
    pools = (pool.at[left].set(jnp.nan) for pool in (k_pool, v_pool))
    # the first key seen is number 161, of page 10, in the middle of a block
    result = check((q, *pools, table, *rest), interpret, **OPTIONS[2])
    assert np.isfinite(result).all()
