"""The twins against dense attention in numpy."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from quire.pallas_kernels import reference

PAGE = 16
HEAD = 8


@dataclasses.dataclass
class Case:
    """Rows with `lengths` tokens, of which the last `counts` are queries, in a pool full of NaN."""

    q: np.ndarray
    k_pool: np.ndarray
    v_pool: np.ndarray
    page_table: np.ndarray
    lengths: np.ndarray
    query_starts: np.ndarray
    keys: list[np.ndarray]
    values: list[np.ndarray]

    @property
    def pages(self) -> tuple[np.ndarray, ...]:
        return self.k_pool, self.v_pool, self.page_table, self.lengths


def make_case(
    lengths: list[int],
    counts: list[int],
    *,
    kv_heads: int = 2,
    groups: int = 2,
    tokens: int | None = None,
    page: int = PAGE,
    seed: int = 0,
) -> Case:
    rng = np.random.default_rng(seed)
    needed = [-(-length // page) for length in lengths]
    columns = max(max(needed), 1) + 3
    free = rng.permutation(sum(needed) + 5) + 1
    shape = (len(free) + 1, page, kv_heads, HEAD)
    k_pool, v_pool = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
    k_pool[0] = v_pool[0] = 0
    table = np.zeros((len(lengths), columns), np.int32)
    keys, values = [], []
    for row, (length, count) in enumerate(zip(lengths, needed, strict=True)):
        table[row, :count], free = free[:count], free[count:]
        k, v = rng.normal(size=(2, length, kv_heads, HEAD)).astype(np.float32)
        keys.append(k)
        values.append(v)
        at = np.arange(length)
        k_pool[table[row, at // page], at % page] = k
        v_pool[table[row, at // page], at % page] = v
    total = sum(counts)
    q = rng.normal(size=(tokens or total, kv_heads * groups, HEAD)).astype(np.float32)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return Case(q, k_pool, v_pool, table, np.asarray(lengths, np.int32), starts, keys, values)


def dense(case: Case, *, scale: float, window: int | None, soft_cap: float | None) -> np.ndarray:
    out = np.zeros(case.q.shape, np.float64)
    groups = case.q.shape[1] // case.k_pool.shape[2]
    for row, length in enumerate(case.lengths):
        start, end = case.query_starts[row : row + 2]
        for token in range(start, end):
            position = length - end + token
            begin = 0 if window is None else max(0, position - window + 1)
            for head in range(case.q.shape[1]):
                k = case.keys[row][begin : position + 1, head // groups].astype(np.float64)
                v = case.values[row][begin : position + 1, head // groups].astype(np.float64)
                scores = k @ case.q[token, head].astype(np.float64) * scale
                if soft_cap is not None:
                    scores = soft_cap * np.tanh(scores / soft_cap)
                weights = np.exp(scores - scores.max())
                out[token, head] = weights / weights.sum() @ v
    return out


@functools.partial(jax.jit, static_argnames=("scale", "window", "soft_cap"))
def prefill(*args: jax.Array, **options: Any) -> jax.Array:
    return reference.paged_prefill(*args, **options)


@functools.partial(jax.jit, static_argnames=("scale", "window", "soft_cap"))
def decode(*args: jax.Array, **options: Any) -> jax.Array:
    return reference.paged_decode(*args, **options)


OPTIONS = [
    {"scale": 0.35, "window": None, "soft_cap": None},
    {"scale": 0.35, "window": 1, "soft_cap": None},
    {"scale": 0.35, "window": 37, "soft_cap": None},
    {"scale": 2.0, "window": 150, "soft_cap": 5.0},
    {"scale": 1.0, "window": None, "soft_cap": 2.0},
]


def check_prefill(case: Case, **options: Any) -> None:
    got = np.asarray(prefill(case.q, *case.pages, case.query_starts, **options))
    np.testing.assert_allclose(got, dense(case, **options), atol=1e-5, rtol=1e-5)


def check_decode(case: Case, **options: Any) -> None:
    got = np.asarray(decode(case.q, *case.pages, **options))
    np.testing.assert_allclose(got, dense(case, **options), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", OPTIONS)
def test_decode_matches_dense_attention_over_uneven_rows(options: dict[str, Any]) -> None:
    check_decode(make_case([1, 300, 16, 17, 129], [1] * 5), **options)


@pytest.mark.parametrize("options", OPTIONS)
def test_prefill_matches_dense_attention_over_ragged_rows(options: dict[str, Any]) -> None:
    check_prefill(make_case([1, 200, 90, 33, 140], [1, 1, 90, 30, 77]), **options)


@pytest.mark.parametrize(("kv_heads", "groups"), [(1, 1), (4, 1), (1, 4), (2, 3)])
def test_any_grouping_of_heads(kv_heads: int, groups: int) -> None:
    options = OPTIONS[2]
    check_decode(make_case([40, 7], [1, 1], kv_heads=kv_heads, groups=groups), **options)
    check_prefill(make_case([40, 7], [20, 7], kv_heads=kv_heads, groups=groups), **options)


@pytest.mark.parametrize("page", [1, 8, 128, 256])
def test_any_page_size(page: int) -> None:
    check_decode(make_case([150, 7], [1, 1], page=page), **OPTIONS[2])
    check_prefill(make_case([150, 7], [140, 3], page=page), **OPTIONS[2])


def test_rows_that_end_one_token_into_a_block_of_keys() -> None:
    check_prefill(make_case([65, 129, 257], [65, 2, 3]), **OPTIONS[0])
    check_decode(make_case([33, 65, 129, 257], [1] * 4), **OPTIONS[0])


def test_a_long_prompt_in_larger_tiles() -> None:
    check_prefill(make_case([1300, 40], [1290, 7], kv_heads=1, groups=1), **OPTIONS[0])


def test_padding_rows_and_tokens_give_zeros() -> None:
    options = OPTIONS[0]
    case = make_case([50, 3, 0, 0], [50, 3, 0, 0], tokens=128)
    check_prefill(case, **options)
    got = prefill(case.q, *case.pages, case.query_starts, **options)
    assert not np.asarray(got)[53:].any()
    check_prefill(make_case([50, 30], [50, 1], tokens=128), **options)
    check_decode(make_case([9, 0, 0], [1, 0, 0], tokens=3), **options)


def test_a_step_of_padding_only_gives_zeros() -> None:
    case = make_case([0, 0], [0, 0], tokens=16)
    assert not np.asarray(prefill(case.q, *case.pages, case.query_starts, **OPTIONS[0])).any()
    assert not np.asarray(decode(case.q[:2], *case.pages, **OPTIONS[0])).any()


def test_chunks_agree_with_the_whole_prompt() -> None:
    whole = make_case([170], [170])
    expected = dense(whole, **OPTIONS[3])
    for start, end in ((0, 70), (70, 71), (71, 170)):
        chunk = dataclasses.replace(
            whole,
            q=whole.q[start:end],
            lengths=np.asarray([end], np.int32),
            query_starts=np.asarray([0, end - start], np.int32),
        )
        got = prefill(chunk.q, *chunk.pages, chunk.query_starts, **OPTIONS[3])
        np.testing.assert_allclose(got, expected[start:end], atol=1e-5, rtol=1e-5)


def test_a_row_of_one_query_is_decode() -> None:
    case = make_case([33, 200], [1, 1])
    got = prefill(case.q, *case.pages, case.query_starts, **OPTIONS[0])
    np.testing.assert_allclose(got, decode(case.q, *case.pages, **OPTIONS[0]), atol=1e-6)


def test_bfloat16_stays_near_float32() -> None:
    case = make_case([140, 20], [100, 20])
    low = [jnp.asarray(x, jnp.bfloat16) for x in (case.q, case.k_pool, case.v_pool)]
    got = prefill(*low, case.page_table, case.lengths, case.query_starts, **OPTIONS[0])
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        got.astype(jnp.float32), dense(case, **OPTIONS[0]), atol=3e-2, rtol=3e-2
    )


@pytest.mark.parametrize("pages", [64, 4096])
def test_temporaries_do_not_grow_with_the_pool(pages: int) -> None:
    def temporaries(fn: Any, queries: int, *extra: jax.ShapeDtypeStruct) -> int:
        pool = jax.ShapeDtypeStruct((pages, PAGE, 2, HEAD), jnp.float32)
        table, lengths = (jax.ShapeDtypeStruct(s, jnp.int32) for s in ((4, 32), (4,)))
        q = jax.ShapeDtypeStruct((queries, 4, HEAD), jnp.float32)
        compiled = fn.lower(q, pool, pool, table, lengths, *extra, scale=1.0).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    starts = jax.ShapeDtypeStruct((5,), jnp.int32)
    assert temporaries(decode, 4) < 500_000
    assert temporaries(prefill, 256, starts) < 1_000_000


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 50)), min_size=1, max_size=4),
    window=st.sampled_from([None, 5, 40]),
)
def test_prefill_property(rows: list[tuple[int, int]], window: int | None) -> None:
    """Any mix of rows, padded to fixed shapes so that nothing compiles anew."""
    lengths = [before + new for before, new in rows] + [0] * (4 - len(rows))
    counts = [new for _, new in rows] + [0] * (4 - len(rows))
    case = make_case(lengths, counts, tokens=200)
    case.page_table = np.pad(case.page_table, ((0, 0), (0, 10 - case.page_table.shape[1])))
    pool_padding = ((0, 40 - case.k_pool.shape[0]), (0, 0), (0, 0), (0, 0))
    case.k_pool = np.pad(case.k_pool, pool_padding, constant_values=np.nan)
    case.v_pool = np.pad(case.v_pool, pool_padding, constant_values=np.nan)
    check_prefill(case, scale=0.5, window=window, soft_cap=None)
