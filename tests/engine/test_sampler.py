import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import special, stats

from quire.engine import sampler, thresholds
from quire.engine.sampler import (
    LogprobResult,
    SamplingRows,
    adjust,
    greedy,
    kept_tokens,
    logprobs,
    sample,
    update_counts,
)

DEFAULTS: dict[str, Any] = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "presence": 0.0,
    "frequency": 0.0,
    "repetition": 1.0,
    "position": 0,
}
FILTERS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.5},
    {"temperature": 2.0},
    {"min_p": 0.2},
    {"top_k": 3},
    {"top_p": 0.7},
    {"top_k": 4, "top_p": 0.8},
    {"min_p": 0.05, "top_p": 0.9, "temperature": 0.7},
    {"min_p": 0.03, "top_k": 5, "top_p": 0.75, "temperature": 1.5},
]

fast_sample = jax.jit(sample)
fast_kept = jax.jit(kept_tokens)


def make_rows(num_rows: int, seed: int = 0, **values: Any) -> SamplingRows:
    """Rows of the given values, one for all or one each, with random keys."""

    def field(name: str) -> jax.Array:
        dtype = jnp.int32 if name in ("top_k", "position") else jnp.float32
        return jnp.broadcast_to(jnp.asarray(values.get(name, DEFAULTS[name]), dtype), (num_rows,))

    keys = np.random.default_rng(seed).integers(0, 2**32, (num_rows, 2), dtype=np.uint32)
    fields = {name: field(name) for name in DEFAULTS}
    return SamplingRows(**fields, key=values.get("key", jnp.asarray(keys)))


def take(rows: SamplingRows, index: np.ndarray) -> SamplingRows:
    return jax.tree.map(lambda x: x[index], rows)


def reference_kept(
    logits: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float
) -> np.ndarray:
    """What one row keeps: float64, with a sort."""
    values = logits.astype(np.float64) + 0.0
    probs = special.softmax(values / temperature)
    kept = probs >= min_p * probs.max()
    if 0 < top_k < len(values):
        kept &= values >= np.sort(values)[-top_k]
    if top_p < 1:
        order = np.argsort(-values, kind="stable")
        mass = np.cumsum(np.where(kept, probs, 0)[order])
        last = min(int(np.searchsorted(mass, top_p * mass[-1])), len(values) - 1)
        kept &= values >= values[order[last]]
    return kept


def reference_probs(logits: np.ndarray, **filters: Any) -> np.ndarray:
    values = {name: filters.get(name, DEFAULTS[name]) for name in FILTERS[-1]}
    kept = reference_kept(logits, **values)
    return special.softmax(np.where(kept, logits / np.float64(values["temperature"]), -np.inf))


def assert_kept_matches(logits: np.ndarray, rows: SamplingRows) -> None:
    """Between the references for a share and a min_p a rounding error lower and higher."""
    kept = np.asarray(fast_kept(jnp.asarray(logits), rows)) & (logits > -np.inf)
    for i, row in enumerate(logits):
        temperature, top_k = float(rows.temperature[i]), int(rows.top_k[i])
        top_p, min_p = float(rows.top_p[i]), float(rows.min_p[i])
        off = 1 if top_p < 1 else 0
        least = reference_kept(row, temperature, top_k, top_p - off * 1e-5, min_p * (1 + 1e-5))
        most = reference_kept(row, temperature, top_k, top_p + off * 1e-5, min_p * (1 - 1e-5))
        possible = row > -np.inf
        assert not np.any(least & possible & (row < row.max()) & ~kept[i])
        assert not np.any(kept[i] & ~most)
        assert np.all(kept[i][row == row.max()])


def random_logits(rng: np.random.Generator, kind: str, shape: tuple[int, int]) -> np.ndarray:
    normal = rng.standard_normal(shape)
    values = {
        "normal": normal * rng.choice([0.01, 1.0, 8.0]),
        "ties": np.round(normal * 2),
        "tiny": normal * 1e-30,
        "huge": normal * 5e37,
        "equal": np.zeros(shape),
        "zeros": np.where(normal > 0, 0.0, -0.0),
    }[kind].astype(np.float32)
    forbidden = rng.random(shape) < rng.choice([0.0, 0.5])
    forbidden[np.arange(len(values)), rng.integers(0, shape[1], len(values))] = False
    return np.where(forbidden, np.float32(-np.inf), values)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([1, 7, 301]),
    kind=st.sampled_from(["normal", "ties", "tiny", "huge", "equal", "zeros"]),
    top_k=st.lists(st.integers(0, 310), min_size=4, max_size=4),
    top_p=st.lists(st.floats(2**-20, 1, width=32), min_size=4, max_size=4),
    min_p=st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4),
    temperature=st.lists(st.floats(2**-7, 2, width=32), min_size=4, max_size=4),
)
def test_keeps_what_a_sort_keeps(seed: int, size: int, kind: str, **filters: Any) -> None:
    logits = random_logits(np.random.default_rng(seed), kind, (4, size))
    assert_kept_matches(logits, make_rows(4, **filters))


@pytest.mark.parametrize("size", [128256, 131072])
def test_keeps_what_a_sort_keeps_in_a_large_vocabulary(size: int) -> None:
    rng = np.random.default_rng(1)
    logits = np.stack([rng.standard_normal(size) * scale for scale in (0.01, 1, 5)])
    logits = np.concatenate([logits, np.zeros((1, size))]).astype(np.float32)
    assert_kept_matches(logits, make_rows(4, top_p=[0.5, 0.9, 0.99, 0.3]))
    assert_kept_matches(logits, make_rows(4, top_k=[1000, 20, 65536, 7], top_p=[1, 0.9, 1, 0.9]))


def test_ties_with_the_last_kept_token_stay() -> None:
    logits = jnp.array([[1.0, 3.0, 2.0, 2.0, 0.0, 2.0]])
    expected = [False, True, True, True, False, True]
    several: list[dict[str, Any]] = [{"top_k": 2}, {"top_p": 0.6}, {"min_p": 0.3}]
    for filters in several:
        assert fast_kept(logits, make_rows(1, **filters))[0].tolist() == expected


def test_zeros_of_either_sign_tie() -> None:
    logits = jnp.array([[0.0, -0.0, -1.0], [-0.0, -1.0, 0.0]])
    kept = fast_kept(logits, make_rows(2, top_k=1))
    assert kept.tolist() == [[True, True, False], [True, False, True]]


def test_top_p_is_as_fine_as_float32() -> None:
    logits = jnp.tile(jnp.log(jnp.array([1.0, 3e-6, 1e-6])), (4, 1))
    rows = make_rows(4, top_p=[1 - 4.2e-6, 1 - 3.8e-6, 1 - 1.2e-6, 1 - 0.8e-6])
    assert jnp.sum(fast_kept(logits, rows), axis=1).tolist() == [1, 2, 2, 3]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_draws_from_the_filtered_distribution(filters: dict[str, Any]) -> None:
    logits = np.array([0.3, 2.0, -np.inf, 1.0, 1.0, -1.0, 2.5, 0.0, -0.5], np.float32)
    num = 4000
    key = jnp.asarray([[5, 6]] * (num // 2) + [[7, 8]] * (num // 2), jnp.uint32)
    rows = make_rows(num, key=key, position=np.arange(num) % (num // 2), **filters)
    tokens = np.asarray(fast_sample(jnp.tile(logits, (num, 1)), rows))
    expected = reference_probs(logits, **filters)
    drawn = np.bincount(tokens, minlength=len(logits))
    assert np.all(drawn[expected == 0] == 0)
    likely = expected > 0
    assert stats.chisquare(drawn[likely], expected[likely] * num).pvalue > 1e-3


def test_rare_tokens_are_drawn_as_often_as_they_should_be() -> None:
    rare = 2.0**-14
    logits = np.full((64, 2048), np.log(rare / 2047), np.float32)
    logits[:, 0] = np.log(1 - rare)
    step = jax.jit(lambda rows: jnp.sum(sample(jnp.asarray(logits), rows) > 0))
    drawn = sum(int(step(make_rows(64, seed, position=seed))) for seed in range(300))
    assert stats.poisson.sf(drawn - 1, 64 * 300 * rare) > 1e-3
    assert stats.poisson.cdf(drawn, 64 * 300 * rare) > 1e-3


def drawn_often(logits: np.ndarray, num: int, **values: Any) -> np.ndarray:
    """How often each token is drawn in `num` draws, a multiple of 1000, from one row of logits."""
    rows = make_rows(1000, position=np.arange(1000), **values)
    tiled = jnp.tile(jnp.asarray(logits), (1000, 1))
    tokens = [
        np.asarray(fast_sample(tiled, dataclasses.replace(rows, position=rows.position + start)))
        for start in range(0, num, 1000)
    ]
    return np.bincount(np.concatenate(tokens), minlength=len(logits))


@pytest.mark.parametrize(
    "filters", [{}, {"top_p": 0.9}, {"top_p": 0.4}, {"top_k": 150}, {"min_p": 0.1}], ids=str
)
@pytest.mark.parametrize("size", [128, 129, 4300])
def test_draws_across_blocks_and_groups(size: int, filters: dict[str, Any]) -> None:
    logits = (np.random.default_rng(size).standard_normal(size) * 2).astype(np.float32)
    logits[::7] = -np.inf
    expected = reference_probs(logits, **filters)
    drawn = drawn_often(logits, 8000, **filters)
    assert np.all(drawn[expected == 0] == 0)
    order = np.argsort(-expected)
    shares = np.minimum((np.cumsum(expected[order]) * 40).astype(int), 39)  # 40 bins, about equal
    bins = np.bincount(shares, drawn[order]), np.bincount(shares, expected[order]) * 8000
    filled = bins[1] > 5
    assert bins[0][~filled].sum() < 30
    seen, hoped = (b[filled] / b[filled].sum() * 8000 for b in bins)
    assert stats.chisquare(seen, hoped).pvalue > 1e-3


@pytest.mark.parametrize("filters", [{}, {"top_p": 0.3}, {"top_k": 3}, {"min_p": 1.0}], ids=str)
def test_equal_logits_are_equally_likely(filters: dict[str, Any]) -> None:
    drawn = drawn_often(np.full(300, -2.5, np.float32), 12000, **filters)
    assert stats.chisquare(drawn).pvalue > 1e-3


def test_a_tiny_nucleus_is_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = np.random.default_rng(0).permutation(np.linspace(0, 1e-2, 20000)).astype(np.float32)
    drawn = drawn_often(logits, 1000, top_p=2.1e-4)
    best = np.argsort(-logits)[:5]  # a share of 4.2 tokens
    assert np.sum(drawn[best]) == 1000
    assert stats.chisquare(drawn[best]).pvalue > 1e-3
    rows = make_rows(200, top_p=2.1e-4)
    monkeypatch.setattr(sampler, "_nucleus_edge", lambda blocks, share: blocks.highest)
    tokens = np.asarray(jax.jit(lambda x: sample(x, rows))(jnp.tile(logits, (200, 1))))
    assert np.mean(tokens == best[0]) > 0.4  # 0.2, had no row got that far


@pytest.mark.parametrize("top_k", [1, 2, 127, 128, 129, 3000, 4999])
@pytest.mark.parametrize("kind", ["normal", "ties", "equal"])
def test_top_k_near_and_beyond_the_limit_of_the_fast_way(kind: str, top_k: int) -> None:
    logits = random_logits(np.random.default_rng(top_k), kind, (4, 5000))
    assert_kept_matches(logits, make_rows(4, top_k=top_k))


def test_thresholds_are_found_among_all_floats() -> None:
    x = jnp.array([[np.inf, 3e38, 1.5, 0.0, -0.0, -1e-30, -3e38, -np.inf]])
    fast = jax.jit(lambda k: thresholds.kth_largest_of_many(x, k))
    found = [float(fast(jnp.array([k]))[0]) for k in range(1, 9)]
    # CPUs take numbers below the normal ones for 0
    assert [0 if abs(value) < 1.2e-38 else value for value in found] == x[0].tolist()


def mixed_batch(size: int = 301) -> tuple[np.ndarray, SamplingRows]:
    rng = np.random.default_rng(3)
    logits = (rng.standard_normal((33, size)) * 3).astype(np.float32)
    logits[rng.random(logits.shape) < 0.1] = -np.inf
    rows = make_rows(
        33,
        temperature=rng.choice([0.0, 0.3, 1.0, 1.7], 33),
        top_k=rng.choice([0, 1, 5, 40, 200], 33),
        top_p=rng.choice([1.0, 1e-3, 0.2, 0.9, 0.99], 33),
        min_p=rng.choice([0.0, 0.0, 0.1], 33),
        position=rng.integers(0, 1000, 33),
    )
    return logits, rows


@pytest.mark.parametrize(("size", "vocab"), [(1, 301), (2, 301), (8, 301), (8, 4500)])
def test_a_row_in_a_batch_is_the_row_alone(size: int, vocab: int) -> None:
    logits, rows = mixed_batch(vocab)
    for step in range(4):
        rows = dataclasses.replace(rows, position=rows.position + 1)
        together = np.asarray(fast_sample(jnp.asarray(logits), rows))
        kept = np.asarray(fast_kept(jnp.asarray(logits), rows))
        order = np.random.default_rng(step).permutation(33)
        for index in np.resize(order, (-(-33 // size), size)):
            few, few_rows = jnp.asarray(logits[index]), take(rows, index)
            assert np.array_equal(fast_sample(few, few_rows), together[index])
            drawn = np.asarray(rows.temperature)[index] > 0
            assert np.array_equal(np.asarray(fast_kept(few, few_rows))[drawn], kept[index][drawn])
        greedy_rows = np.asarray(rows.temperature) == 0
        assert np.array_equal(together[greedy_rows], np.argmax(logits, axis=1)[greedy_rows])
        assert np.all(kept[~greedy_rows, together[~greedy_rows]])


def test_a_row_among_hard_ones_is_the_row_alone() -> None:
    flat = np.random.default_rng(0).permutation(np.linspace(0, 1e-2, 20000)).astype(np.float32)
    logits = jnp.asarray(np.stack([flat, flat * 500, flat * 50, flat]))
    rows = make_rows(4, top_p=[1e-4, 0.9, 0.3, 1.0], top_k=[0, 0, 700, 0])
    for step in range(5):
        rows = dataclasses.replace(rows, position=rows.position + step)
        together = fast_sample(logits, rows)
        for i in range(4):
            assert fast_sample(logits[i : i + 1], take(rows, np.array([i])))[0] == together[i]


@pytest.mark.parametrize(
    "filters", [{"temperature": 0.0, "top_k": 2, "top_p": 0.5}, {"top_k": 1}, {"top_p": 1e-6}]
)
def test_is_greedy(filters: dict[str, Any]) -> None:
    logits = mixed_batch()[0]
    expected = np.argmax(logits, axis=1)
    assert np.array_equal(greedy(jnp.asarray(logits)), expected)
    assert np.array_equal(fast_sample(jnp.asarray(logits), make_rows(33, **filters)), expected)


def test_greedy_takes_the_lowest_of_equal_tokens() -> None:
    logits = jnp.array([[0.0, 5.0, 5.0], [-1e38, -1e38, -2e38], [1e-30, 2e-30, 2e-30]])
    assert greedy(logits).tolist() == [1, 0, 1]
    assert fast_sample(logits, make_rows(3, temperature=0.0)).tolist() == [1, 0, 1]


def test_positions_and_keys_change_tokens() -> None:
    logits = jnp.zeros((8, 301))
    key = jnp.tile(jnp.array([[1, 2]], jnp.uint32), (8, 1))
    same = fast_sample(logits, make_rows(8, key=key, position=4))
    positions = fast_sample(logits, make_rows(8, key=key, position=np.arange(8)))
    keys = fast_sample(logits, make_rows(8, position=4))
    assert len(set(same.tolist())) == 1
    assert positions[4] == same[0]
    assert len(set(positions.tolist())) > 5
    assert len(set(keys.tolist())) > 5


def test_tokens_of_a_key_are_the_same_in_every_version_of_jax() -> None:
    key = jnp.tile(jnp.array([[123456789, 987654321]], jnp.uint32), (8, 1))
    logits = jnp.tile(jnp.linspace(0.0, 2.0, 301), (8, 1))
    tokens = fast_sample(logits, make_rows(8, key=key, position=np.arange(8), top_p=0.9))
    assert tokens.tolist() == [206, 247, 177, 133, 82, 262, 181, 151]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_forbidden_everywhere_gives_token_0(filters: dict[str, Any]) -> None:
    logits = jnp.full((2, 9), -jnp.inf).at[1, 4].set(-3.0)
    assert fast_sample(logits, make_rows(2, **filters)).tolist() == [0, 4]


def equations(jaxpr: Any, inside: str) -> Iterator[tuple[str, Any]]:
    """Every equation, those of nested programs too, with whether it is inside a cond."""
    for equation in jaxpr.eqns:
        yield inside, equation
        deeper = "cond" if equation.primitive.name == "cond" else inside
        for leaf in jax.tree.leaves(list(equation.params.values())):
            if hasattr(leaf, "eqns"):
                yield from equations(getattr(leaf, "jaxpr", leaf), deeper)


def test_reads_the_vocabulary_twice_and_sorts_little_of_it() -> None:
    logits = jax.ShapeDtypeStruct((4, 128256), jnp.float32)
    found = list(equations(jax.make_jaxpr(sample)(logits, make_rows(4)).jaxpr, ""))
    sorts = [e for _, e in found if e.primitive.name in ("sort", "top_k")]
    assert sorts
    assert all(e.invars[0].aval.shape[-1] <= 2048 for e in sorts)
    passes = [
        e.primitive.name
        for inside, e in found
        if not inside and "reduce" in e.primitive.name and e.invars[0].aval.size >= 4 * 128256
    ]
    assert passes == ["reduce_max", "reduce"]


def penalized(logits: np.ndarray, rows: SamplingRows, counts: np.ndarray, bias: np.ndarray):
    presence, frequency, repetition = (
        np.asarray(x)[:, None] for x in (rows.presence, rows.frequency, rows.repetition)
    )
    out = logits + bias
    out = np.where(counts > 0, np.where(out > 0, out / repetition, out * repetition), out)
    return out - frequency * (counts >> 1) - presence * (counts > 1)


def test_adjusts_by_bias_and_penalties() -> None:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((5, 40)).astype(np.float32)
    counts = rng.choice([0, 1, 2, 3, 7], (5, 40)).astype(np.int32)
    bias = rng.choice([0, 0, 3.5, -np.inf], (5, 40)).astype(np.float32)
    rows = make_rows(
        5,
        presence=[0, 0, 1.5, -2, 0.3],
        frequency=[0, 0.7, 0, -1, 0.2],
        repetition=[1.3, 1, 1, 0.5, 1.1],
    )
    got = np.asarray(jax.jit(adjust)(logits, rows, counts, bias))
    expected = penalized(logits, rows, counts, bias)
    assert np.allclose(got, expected, rtol=1e-6, atol=1e-6)
    assert np.all(got[bias == -np.inf] == -np.inf)


def test_neutral_parameters_change_no_bit() -> None:
    logits = np.array([[0.0, -0.0, -np.inf, 1e-38, 3e38, -1.1]], np.float32)
    counts = np.array([[0, 1, 2, 3, 9, 4]], np.int32)
    got = jax.jit(adjust)(logits, make_rows(1), counts, np.zeros_like(logits))
    assert np.array_equal(np.asarray(got).view(np.uint32), logits.view(np.uint32))


def test_update_counts_adds_output_occurrences_of_valid_rows() -> None:
    counts = jnp.zeros((3, 5), jnp.int32).at[1, 4].set(1)
    slots, tokens = jnp.array([1, 2, 1, 0]), jnp.array([4, 0, 4, 3])
    counts = update_counts(counts, slots, tokens, jnp.array([True, True, True, False]))
    assert counts.tolist() == [[0] * 5, [0, 0, 0, 0, 5], [2, 0, 0, 0, 0]]


def test_counts_do_not_overflow() -> None:
    counts = jnp.array([[65533, 65534, 65535]], jnp.uint16)
    for token in range(3):
        one = jnp.array([0]), jnp.array([token]), jnp.array([True])
        counts = update_counts(counts, *one)
    assert counts.tolist() == [[65535, 65534, 65535]]


def assert_logprobs_match(result: LogprobResult, logits: np.ndarray, tokens: np.ndarray, k: int):
    expected = special.log_softmax(logits.astype(np.float64), axis=1)
    order = np.argsort(-logits, axis=1, kind="stable")
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    close(result.token_logprob, np.take_along_axis(expected, tokens[:, None], 1)[:, 0])
    close(result.top_logprobs, np.take_along_axis(expected, order, 1)[:, :k])
    close(result.logsumexp, special.logsumexp(logits.astype(np.float64), axis=1))
    assert np.array_equal(result.top_ids, order[:, :k])
    assert np.array_equal(result.token_rank, np.argmax(order == tokens[:, None], axis=1) + 1)


@pytest.mark.parametrize("k", [0, 1, 5, 16, 20])
@pytest.mark.parametrize("scale", [3.0, 0.2])
def test_logprobs(k: int, scale: float) -> None:
    rng = np.random.default_rng(k)
    logits = (np.round(rng.standard_normal((6, 130)) * 8 * scale) / 8).astype(np.float32)
    tokens = rng.integers(0, 130, 6).astype(np.int32)
    assert_logprobs_match(jax.jit(logprobs, static_argnums=2)(logits, tokens, k), logits, tokens, k)


@pytest.mark.parametrize("vocab", [5, 64, 100])
def test_a_mask_has_a_bit_for_each_token(vocab: int) -> None:
    allowed = np.random.default_rng(0).integers(0, 2, (3, vocab)).astype(bool)
    padded = np.pad(allowed, [(0, 0), (0, -vocab % 32)])
    words = np.packbits(padded, axis=1, bitorder="little").view(np.int32)
    masked = np.asarray(sampler.mask(jnp.zeros((3, vocab)), jnp.asarray(words)))
    np.testing.assert_array_equal(masked, np.where(allowed, 0, -np.inf))
