"""Lowest logits to keep, found exactly and without a sort of the vocabulary."""

import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt32

FAST_TOP_K = 128
"""The largest k for which `kth_largest` looks at few tokens only."""
_DIGIT_BITS = 3
"""Bits that a pass over the vocabulary adds to a threshold, by testing 2^bits - 1 of them."""
_LOWEST = 0x007FFFFF
"""What `_ordered` makes of -inf; lower numbers would be NaN."""

_Digits = tuple[UInt32[Array, " R"], UInt32[Array, ""]]
"""The threshold found so far, and the place of the digit to find next."""

Enough = Callable[[list[Float[Array, " R"]]], list[Bool[Array, " R"]]]
"""Whether each of several thresholds leaves enough, row by row."""


def kth_largest(
    x: Float[Array, "R B size"], best: Float[Array, "R B"], k: Int[Array, " R"]
) -> Float[Array, " R"]:
    """The k-th largest entry of each row, k from 1 to FAST_TOP_K; `best` are the maxima of blocks.

    The k largest entries lie in the k blocks with the largest maxima. So few blocks are read, and
    few parts of these; what is sorted has some thousand entries a row.
    """
    part = 8
    chosen = _take_largest(x, best)
    parts = chosen.reshape(len(x), -1, part)
    chosen = _take_largest(parts, jnp.max(parts, axis=2)).reshape(len(x), -1)
    ordered = jnp.take_along_axis(chosen, _largest(chosen), axis=1)
    index = jnp.clip(k, 1, ordered.shape[1]) - 1
    return jnp.take_along_axis(ordered, index[:, None], axis=1)[:, 0]


def _take_largest(
    blocks: Float[Array, "R B size"], best: Float[Array, "R B"]
) -> Float[Array, "R C size"]:
    """The blocks with the largest maxima; all, where there are few."""
    if best.shape[1] <= FAST_TOP_K:
        return blocks
    rows = jnp.arange(len(blocks))[:, None]
    return blocks.at[rows, _largest(best)].get(mode="promise_in_bounds")


def _largest(x: Float[Array, "R N"]) -> Int[Array, "R C"]:
    """Where the largest entries are, in falling order."""
    count = min(FAST_TOP_K, x.shape[1])

    def by_sort(x: Float[Array, "R N"]) -> Int[Array, "R C"]:
        ids = lax.broadcasted_iota(jnp.int32, x.shape, 1)
        # XLA has one kernel for a short sort by two keys; it may take a library's for one key
        return lax.sort((~_ordered(x), ids), num_keys=2)[1][:, :count]

    def by_top_k(x: Float[Array, "R N"]) -> Int[Array, "R C"]:
        return lax.top_k(x, count)[1]

    return lax.platform_dependent(x, cuda=by_sort, default=by_top_k)


def kth_largest_of_many(x: Float[Array, "R V"], k: Int[Array, " R"]) -> Float[Array, " R"]:
    """The k-th largest entry of each row, k from 1 to V, in eleven passes over all entries."""

    def enough(thresholds: list[Float[Array, " R"]]) -> list[Bool[Array, " R"]]:
        counts = row_sums([(x >= t[:, None]).astype(jnp.int32) for t in thresholds])
        return [count >= k for count in counts]

    return search(enough, len(x))


def search(enough: Enough, num_rows: int) -> Float[Array, " R"]:
    """The largest float that is `enough`, which turns from true to false as it grows.

    -inf is always enough. Floats are searched as integers of the same order, from the highest bit
    down, a digit of several bits a pass: the digit is the number of thresholds that are enough.
    Where digits do not divide 32 bits, the last pass overlaps.
    """

    def add_digit(_: object, state: _Digits) -> _Digits:
        # behind a barrier the kernels of all passes are the same, and compile once
        found, shift = lax.optimization_barrier(state)
        steps = jnp.arange(1, 1 << _DIGIT_BITS, dtype=jnp.uint32) << shift
        tested = lax.optimization_barrier(found[None, :] + steps[:, None])
        digit = sum(passed.astype(jnp.uint32) for passed in enough(list(_floats(tested))))
        return found + (digit << shift), jnp.maximum(shift, _DIGIT_BITS) - _DIGIT_BITS

    def passes(unroll: bool) -> Callable[[_Digits], _Digits]:
        count = math.ceil(32 / _DIGIT_BITS)
        return lambda state: lax.fori_loop(0, count, add_digit, state, unroll=unroll)

    # a loop would split the CUDA graph of the step; elsewhere it halves the time to compile
    start = jnp.zeros(num_rows, jnp.uint32), jnp.uint32(32 - _DIGIT_BITS)
    return _floats(lax.platform_dependent(start, cuda=passes(True), default=passes(False))[0])


def row_sums(arrays: Sequence[Array]) -> Sequence[Array]:
    """Sums over the last axis of several integer arrays of one shape, which are read once."""
    zeros = [jnp.zeros((), a.dtype) for a in arrays]
    axis = arrays[0].ndim - 1
    return lax.reduce(
        arrays, zeros, lambda a, b: [x + y for x, y in zip(a, b, strict=True)], (axis,)
    )


def _ordered(x: Float[Array, "*shape"]) -> UInt32[Array, "*shape"]:
    """Integers in the order of floats: of negative ones all bits are flipped, else the sign bit."""
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    return jnp.where(bits < sign, bits | sign, ~bits)


def _floats(ordered: UInt32[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The floats that `_ordered` made these of; -inf below that."""
    sign = jnp.uint32(1 << 31)
    ordered = jnp.maximum(ordered, jnp.uint32(_LOWEST))
    return lax.bitcast_convert_type(
        jnp.where(ordered >= sign, ordered ^ sign, ~ordered), jnp.float32
    )
