"""Attention in both directions: the twins and the Hopper kernel against the formula."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quire.models.attention import attend_batch
from quire.pallas_kernels import hopper_prefill, hopper_ranges, range_reference
from quire.pallas_kernels.range_reference import batch_attention, segment_attention

from .test_hopper_prefill import TOLERANCE, interpreted, needs_mosaic

SCALE = 0.3
Arrays = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def make_case(
    lengths: list[int], total: int, *, heads: int = 2, width: int = 64, dtype: str = "bfloat16"
) -> Arrays:
    """q, k and v of `total` tokens in segments of these lengths, and then padding."""
    q, k, v = np.random.default_rng(0).normal(size=(3, total, heads, width))
    numbers = np.zeros(total, np.int32)
    numbers[: sum(lengths)] = np.repeat(np.arange(len(lengths)) + 1, lengths)
    floats = (jnp.asarray(x, dtype) for x in (q, k, v))
    return (*floats, jnp.asarray(numbers))  # type: ignore[return-value]


def formula(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> np.ndarray:
    """Segment by segment, in float64."""
    arrays = [np.asarray(x.astype(jnp.float32), np.float64) for x in (q, k, v)]
    out = np.zeros(q.shape)
    for number in np.unique(segments[segments > 0]):
        mine = np.asarray(segments == number)
        queries, keys, values = (x[mine] for x in arrays)
        scores = SCALE * np.einsum("qhd,khd->hqk", queries, keys)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        out[mine] = np.einsum("hqk,khd->qhd", weights, values)
    return out


def make_batch(
    lengths: list[int], states: int, *, heads: int = 2, width: int = 64, dtype: str = "bfloat16"
) -> Arrays:
    """q, k and v of clips of which so many states are real."""
    q, k, v = np.random.default_rng(0).normal(size=(3, len(lengths), states, heads, width))
    floats = (jnp.asarray(x, dtype) for x in (q, k, v))
    return (*floats, jnp.asarray(lengths))  # type: ignore[return-value]


def batch_formula(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array) -> np.ndarray:
    """Clip by clip, in float64."""
    arrays = [np.asarray(x.astype(jnp.float32), np.float64) for x in (q, k, v)]
    out = np.zeros(q.shape)
    for i, length in enumerate(lengths.tolist()):
        queries, keys, values = (x[i] for x in arrays)
        weights = np.exp(SCALE * np.einsum("qhd,khd->hqk", queries, keys[:length]))
        weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-300)
        out[i] = np.einsum("hqk,khd->qhd", weights, values[:length])
    return out


def check_batch(out: jax.Array, case: Arrays) -> None:
    assert out.dtype == case[0].dtype
    tolerance = TOLERANCE[out.dtype.name]
    np.testing.assert_allclose(np.asarray(out, np.float32), batch_formula(*case), atol=tolerance)


def check(out: jax.Array, case: Arrays) -> None:
    tolerance = TOLERANCE[out.dtype.name]
    assert out.dtype == case[0].dtype
    np.testing.assert_allclose(np.asarray(out, np.float32), formula(*case), atol=tolerance)
    np.testing.assert_array_equal(np.asarray(out[case[-1] == 0], np.float32), 0)


@pytest.mark.parametrize("lengths", [[768], [1, 300, 16, 451], [100, 20], []])
def test_the_twin_is_attention_over_whole_segments(lengths: list[int]) -> None:
    case = make_case(lengths, 768, width=8, dtype="float32")
    out = segment_attention(*case, scale=SCALE)
    np.testing.assert_allclose(out, formula(*case), atol=1e-5)
    np.testing.assert_array_equal(out[sum(lengths) :], 0)


@pytest.mark.parametrize("at_once", [1, 2, 9])
@pytest.mark.parametrize("lengths", [[20, 0, 1, 7, 19], [20]])
def test_the_twin_is_attention_of_each_clip(
    lengths: list[int], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(range_reference, "_SCORES", at_once * 20 * 20 * 2)
    case = make_batch(lengths, 20, width=8, dtype="float32")
    out = batch_attention(*case, scale=SCALE)
    np.testing.assert_allclose(out, batch_formula(*case), atol=1e-5)


def test_the_longest_run_never_holds_all_scores() -> None:
    """They would be 8 GB in 16 bits."""
    shape = jax.ShapeDtypeStruct((16384, 16, 80), jnp.bfloat16)
    segments = jax.ShapeDtypeStruct((16384,), jnp.int32)
    lowered = jax.jit(segment_attention, static_argnames="scale").lower(
        shape, shape, shape, segments, scale=1.0
    )
    memory = lowered.compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 1 << 30


def test_ranges_of_segments() -> None:
    first, behind = hopper_ranges.segment_ranges(jnp.asarray([3, 3, 1, 2, 2, 2, 0, 0]))
    assert first.tolist() == [0, 0, 2, 3, 3, 3, 0, 0]
    assert behind.tolist() == [2, 2, 3, 6, 6, 6, 0, 0]


def test_ranges_of_one_segment_and_of_padding_alone() -> None:
    assert hopper_ranges.segment_ranges(jnp.asarray([1, 1, 1])).tolist() == [[0, 0, 0], [3, 3, 3]]
    assert not hopper_ranges.segment_ranges(jnp.asarray([0, 0, 0])).any()


@needs_mosaic
@pytest.mark.parametrize("lengths", [[10, 190, 16, 204], [512], [3, 400]])
@pytest.mark.parametrize("width", [64, 96])
def test_interpreted(lengths: list[int], width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hopper_prefill, "_BLOCKS", 2)  # each serves several tiles
    case = make_case(lengths, 512, width=width)
    check(interpreted(hopper_ranges.segment_attention, *case, scale=SCALE), case)


@needs_mosaic
def test_a_batch_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clips that begin in the middle of a tile."""
    monkeypatch.setattr(hopper_prefill, "_BLOCKS", 2)
    case = make_batch([150, 0, 3], 150)
    check_batch(interpreted(hopper_ranges.batch_attention, *case, scale=SCALE), case)


@needs_mosaic
@pytest.mark.gpu
@pytest.mark.parametrize("width", [64, 72, 80])
@pytest.mark.parametrize(("lengths", "states"), [([577] * 5, 577), ([1500, 500, 0], 1500)], ids=str)
def test_a_batch_on_a_gpu(lengths: list[int], states: int, width: int) -> None:
    case = make_batch(lengths, states, heads=3, width=width)
    out = jax.jit(functools.partial(attend_batch, scale=SCALE))(*case)
    check_batch(out, case)
    wide = tuple(x.astype(jnp.float32) for x in case[:3])

    def total(attend: Any, *arrays: jax.Array) -> jax.Array:
        return (attend(*arrays, case[-1], scale=SCALE).astype(jnp.float32) ** 2).sum()

    ours = jax.jit(jax.grad(functools.partial(total, attend_batch), (0, 1, 2)))(*case[:3])
    theirs = jax.grad(functools.partial(total, batch_attention), (0, 1, 2))(*wide)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(np.asarray(one, np.float32), other, atol=0.1, rtol=0.1)


@needs_mosaic
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("width", [64, 96, 128, 256])
@pytest.mark.parametrize(
    "lengths",
    [[4096], [16] * 100, [1564] * 2, [1, 2, 1021, 128, 128, 700], [3000, 4, 60], [5]],
    ids=str,
)
def test_on_a_gpu(lengths: list[int], width: int, dtype: str) -> None:
    case = make_case(lengths, 4096, heads=3, width=width, dtype=dtype)
    kernel = functools.partial(hopper_ranges.segment_attention, scale=SCALE)
    check(jax.jit(kernel)(*case), case)
