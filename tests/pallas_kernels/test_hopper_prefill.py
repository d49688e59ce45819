"""The Hopper prefill kernel against its twin."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quire.pallas_kernels import hopper_prefill as kernel, reference

STATIC = ("scale", "window", "soft_cap")
PLAIN: dict[str, Any] = {"scale": 0.2, "window": None, "soft_cap": None}
WINDOW: dict[str, Any] = {"scale": 0.2, "window": 37, "soft_cap": None}
CAPPED: dict[str, Any] = {"scale": 0.5, "window": 150, "soft_cap": 5.0}
TOLERANCE = {"bfloat16": 2e-2, "float16": 3e-3}
VERSION = tuple(int(part) for part in jax.__version__.split(".")[:3])

needs_mosaic = pytest.mark.skipif(
    VERSION < (0, 11, 2),
    reason=f"the Mosaic kernels need jax 0.11.2 or later, not {jax.__version__}",
)


def make_case(
    lengths: list[int],
    counts: list[int],
    *,
    kv_heads: int = 1,
    groups: int = 2,
    width: int = 64,
    page: int = 16,
    tokens: int | None = None,
    dtype: str = "bfloat16",
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


def interpreted(run: Callable[..., jax.Array], *args: jax.Array, **options: Any) -> jax.Array:
    """A kernel in Mosaic's interpreter; fails where two warpgroups race for memory."""
    from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call

    try:
        out = run(*args, **options, interpret=True).block_until_ready()
        assert not interpret_pallas_call.get_races().races_found
    finally:
        interpret_pallas_call.reset_gpu_interpret_mode_state()
    return out


def interpret(*args: jax.Array, **options: Any) -> jax.Array:
    return interpreted(kernel.paged_prefill, *args, **options)


def check(run: Any, case: tuple[jax.Array, ...], options: dict[str, Any] = PLAIN) -> np.ndarray:
    got = run(*case, **options)
    assert got.dtype == case[0].dtype
    wide = [x.astype(jnp.float32) for x in case[:3]]
    expected = np.asarray(twin(*wide, *case[3:], **options))
    tolerance = TOLERANCE[got.dtype.name]
    result = np.asarray(got, np.float32)
    np.testing.assert_allclose(result, expected, atol=tolerance, rtol=tolerance)
    return result


@pytest.fixture
def two_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thread blocks enough to serve several tiles each, few enough to interpret."""
    monkeypatch.setattr(kernel, "_BLOCKS", 2)


@needs_mosaic
@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")
@pytest.mark.usefixtures("two_blocks")
@pytest.mark.parametrize(
    ("case", "options"),
    [
        (([1, 200, 90, 33, 140], [1, 1, 90, 30, 77], {"groups": 4}), WINDOW),
        (([150, 7], [20, 3], {"groups": 3, "page": 8, "tokens": 30}), CAPPED),
        (([140], [9], {"width": 96, "groups": 1, "dtype": "float16"}), PLAIN),
        (([140, 20], [9, 5], {"width": 256, "page": 256}), PLAIN),
    ],
)
def test_interpreted(case: Any, options: dict[str, Any]) -> None:
    lengths, counts, shape = case
    check(interpret, make_case(lengths, counts, **shape), options)


@needs_mosaic
@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")
@pytest.mark.usefixtures("two_blocks")
def test_interpreted_padding_gives_zeros() -> None:
    case = make_case([40, 9, 0], [30, 1, 0], tokens=70)
    np.testing.assert_array_equal(check(interpret, case)[31:], 0)


@needs_mosaic
@pytest.mark.gpu
@pytest.mark.parametrize("options", [PLAIN, WINDOW, {**WINDOW, "window": 1}, CAPPED])
@pytest.mark.parametrize("width", [64, 96, 128, 256])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_head_sizes(dtype: str, width: int, options: dict[str, Any]) -> None:
    options = {**options, "scale": width**-0.5}
    case = make_case(
        [1, 200, 90, 340, 1000], [1, 1, 90, 277, 700], width=width, groups=4, dtype=dtype
    )
    check(prefill, case, options)


@needs_mosaic
@pytest.mark.gpu
@pytest.mark.parametrize("groups", range(1, 17))
def test_any_grouping_of_heads(groups: int) -> None:
    check(prefill, make_case([340, 7, 30], [220, 7, 1], kv_heads=2, groups=groups), WINDOW)


@needs_mosaic
@pytest.mark.gpu
@pytest.mark.parametrize("page", [8, 16, 64, 256])
@pytest.mark.parametrize("width", [128, 256])
def test_page_sizes(page: int, width: int) -> None:
    case = make_case([350, 7], [340, 3], page=page, width=width)
    check(prefill, case, {**WINDOW, "scale": width**-0.5})


@needs_mosaic
@pytest.mark.gpu
def test_padding_rows_and_tokens_give_zeros() -> None:
    case = make_case([40, 9, 0, 0], [30, 1, 0, 0], tokens=203)
    np.testing.assert_array_equal(check(prefill, case)[31:], 0)


@needs_mosaic
@pytest.mark.gpu
def test_no_rows_at_all_give_zeros() -> None:
    np.testing.assert_array_equal(check(prefill, make_case([0, 0], [0, 0], tokens=70)), 0)


@needs_mosaic
@pytest.mark.gpu
@pytest.mark.parametrize("width", [128, 256])
def test_rows_that_end_at_the_bounds_of_tiles_and_blocks(width: int) -> None:
    lengths, counts = [64, 65, 128, 129, 63, 256], [64, 1, 64, 65, 63, 128]
    case = make_case(lengths, counts, groups=1, width=width)
    check(prefill, case, {**PLAIN, "scale": width**-0.5})


@needs_mosaic
@pytest.mark.gpu
def test_keys_that_left_the_window_may_be_nan() -> None:
    q, k_pool, v_pool, table, *rest = make_case([200], [3])
    pools = (pool.at[table[0, :9]].set(jnp.nan) for pool in (k_pool, v_pool))
    # the first key seen is number 161, of page 10, in the middle of a block
    assert np.isfinite(check(prefill, (q, *pools, table, *rest), WINDOW)).all()


@needs_mosaic
@pytest.mark.gpu
@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("options", [PLAIN, CAPPED])
def test_bits_depend_neither_on_chunks_nor_on_other_rows(
    width: int, options: dict[str, Any]
) -> None:
    case = make_case([700, 333], [700, 333], kv_heads=2, groups=4, width=width)
    q, k_pool, v_pool, table, _, _ = case
    whole = np.asarray(prefill(*case, **options), np.float32)

    def chunk(row: int, begin: int, end: int) -> np.ndarray:
        queries = q[row * 700 + begin : row * 700 + end]
        rows = jnp.asarray([end], jnp.int32), jnp.asarray([0, end - begin], jnp.int32)
        out = prefill(queries, k_pool, v_pool, table[row : row + 1], *rows, **options)
        return np.asarray(out, np.float32)

    np.testing.assert_array_equal(chunk(1, 0, 333), whole[700:])
    ends = [0, 129, 429, 436, 700]
    parts = [chunk(0, begin, end) for begin, end in zip(ends, ends[1:], strict=False)]
    np.testing.assert_array_equal(np.concatenate(parts), whole[:700])
