"""Attention within segments: the twin against its formula, the Hopper kernel against the twin."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quire.pallas_kernels import hopper_prefill, hopper_segments
from quire.pallas_kernels.segment_reference import segment_attention

from .test_hopper_prefill import TOLERANCE, needs_mosaic

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


def kernel(*case: jax.Array, **options: Any) -> jax.Array:
    return hopper_segments.segment_attention(*case, scale=SCALE, **options)


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
    first, behind = hopper_segments.ranges(jnp.asarray([3, 3, 1, 2, 2, 2, 0, 0]))
    assert first.tolist() == [0, 0, 2, 3, 3, 3, 0, 0]
    assert behind.tolist() == [2, 2, 3, 6, 6, 6, 0, 0]


def test_ranges_of_one_segment_and_of_padding_alone() -> None:
    assert hopper_segments.ranges(jnp.asarray([1, 1, 1])).tolist() == [[0, 0, 0], [3, 3, 3]]
    assert not hopper_segments.ranges(jnp.asarray([0, 0, 0])).any()


@needs_mosaic
@pytest.mark.parametrize("lengths", [[10, 190, 16, 204], [512], [3, 400]])
@pytest.mark.parametrize("width", [64, 96])
def test_interpreted(lengths: list[int], width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call

    monkeypatch.setattr(hopper_prefill, "_BLOCKS", 2)  # each serves several tiles
    case = make_case(lengths, 512, width=width)
    try:
        check(kernel(*case, interpret=True), case)
        assert not interpret_pallas_call.get_races().races_found
    finally:
        interpret_pallas_call.reset_gpu_interpret_mode_state()


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
    check(jax.jit(kernel)(*case), case)
