"""Sampling inside the jitted step: masks and penalties, filters, Gumbel argmax, log-probabilities.

All of this is traced. The token of a row depends on that row alone, bitwise: it is the same in a
batch of any size, whatever the other rows ask for. Three choices give that:

* Noise is drawn row by row, from the row's key folded with the position of the token.
* What min_p, top_k and top_p keep is always the tokens from some logit upwards. top_k and top_p
  find that logit without a sort, bit by bit: integers that order like the floats are searched.
* The search compares sums of integers, counts or probabilities in fixed point, and these come out
  the same in any order of addition.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt32

_DIGIT_BITS = 3
"""Bits that a pass over the vocabulary adds to a threshold, by testing 2^bits - 1 of them."""
_TOP_K_PIECE = 16
"""The largest k for which XLA on a GPU selects instead of sorting."""

_Mass = tuple[UInt32[Array, " R"], UInt32[Array, " R"]]
"""A sum of probabilities in fixed point: its high and its low limb."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SamplingRows:
    """The sampling parameters of the R rows of a step, validated by the host."""

    temperature: Float[Array, " R"]
    """0 is greedy: the row ignores the filters and its key."""
    top_k: Int[Array, " R"]
    """0 is off; so is V or more."""
    top_p: Float[Array, " R"]
    """1 is off."""
    min_p: Float[Array, " R"]
    """0 is off."""
    presence: Float[Array, " R"]
    """0 is off."""
    frequency: Float[Array, " R"]
    """0 is off."""
    repetition: Float[Array, " R"]
    """1 is off."""
    key: UInt32[Array, "R 2"]
    """The threefry key of each row's sequence."""
    position: Int[Array, " R"]
    """Absolute position, in its sequence, of the token that is sampled."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LogprobResult:
    """Log-probabilities, natural logarithms under the raw softmax, for N rows or prompt tokens."""

    token_logprob: Float[Array, " N"]
    """Of the token chosen."""
    token_rank: Int[Array, " N"]
    """Its place, counted from 1, by falling probability; the lower id goes first among equals."""
    top_ids: Int[Array, "N k"]
    """The k most probable tokens in that order."""
    top_logprobs: Float[Array, "N k"]
    logsumexp: Float[Array, " N"]
    """Any other token's log-probability is its raw logit less this."""


def greedy(logits: Float[Array, "R V"]) -> Int[Array, " R"]:
    """The most probable token of each row, the lowest id among equals, as int32."""
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def sample(logits: Float[Array, "R V"], rows: SamplingRows) -> Int[Array, " R"]:
    """Draws one token a row, int32: temperature, min_p, top_k, top_p, then Gumbel argmax.

    Logits are float32; they may be -inf (forbidden), not NaN or +inf. Rows of temperature 0 get
    `greedy(logits)`. A row in which every token is forbidden gets token 0: the host prevents it.
    """
    with jax.named_scope("sample"):
        noisy = _scaled(logits, rows) + _gumbel(rows, logits.shape[1])
        drawn = jnp.where(kept_tokens(logits, rows), noisy, -jnp.inf)
        return greedy(jnp.where(_column(rows.temperature) == 0, logits, drawn))


def kept_tokens(logits: Float[Array, "R V"], rows: SamplingRows) -> Bool[Array, "R V"]:
    """The tokens `sample` draws from: min_p, then top_k, then top_p; arbitrary at temperature 0.

    min_p keeps the tokens of at least min_p times the highest probability. top_k keeps what ties
    with the k-th logit, too. top_p keeps the smallest set of highest logits, again with all that
    tie, whose share of the mass left by the other two is at least top_p.
    """
    drawn = rows.temperature != 0
    by_k = drawn & (rows.top_k > 0) & (rows.top_k < logits.shape[1])
    floor = _if_any(by_k, lambda: _top_k_threshold(logits, rows.top_k))
    by_p = drawn & (rows.top_p < 1)
    nucleus = _if_any(by_p, lambda: _top_p_threshold(logits, rows, floor))
    return _above(logits, rows, jnp.maximum(floor, nucleus))


def _above(
    logits: Float[Array, "R V"], rows: SamplingRows, floor: UInt32[Array, " R"]
) -> Bool[Array, "R V"]:
    """What min_p and a lowest key keep."""
    probable = _scaled(logits, rows) >= _column(jnp.log(rows.min_p))
    return probable & (_ordered(logits) >= _column(floor))


def _scaled(logits: Float[Array, "R V"], rows: SamplingRows) -> Float[Array, "R V"]:
    """Logits less the row's highest, divided by temperature: at most 0, so nothing overflows."""
    highest = jnp.max(logits, axis=1, keepdims=True)
    shifted = logits - jnp.where(jnp.isfinite(highest), highest, 0)
    return shifted / _column(jnp.where(rows.temperature == 0, 1, rows.temperature))


def _if_any(
    active: Bool[Array, " R"], search: Callable[[], UInt32[Array, " R"]]
) -> UInt32[Array, " R"]:
    """The thresholds of the active rows, 0 for the others; no search where no row is active."""
    off = jnp.zeros(active.shape, jnp.uint32)
    return lax.cond(jnp.any(active), lambda: jnp.where(active, search(), off), lambda: off)


def _ordered(x: Float[Array, "R V"]) -> UInt32[Array, "R V"]:
    """Keys in the order of the floats: of negative ones all bits are flipped, else the sign bit."""
    bits = lax.bitcast_convert_type(jnp.where(x == 0, 0.0, x), jnp.uint32)  # -0 is 0
    sign = jnp.uint32(1 << 31)
    return jnp.where(bits < sign, bits | sign, ~bits)


def _search(
    enough: Callable[[list[UInt32[Array, " R"]]], list[Bool[Array, " R"]]], num_rows: int
) -> UInt32[Array, " R"]:
    """The largest 32-bit threshold that is `enough`, which turns from true to false as it grows.

    Found from the highest bit down, a digit of several bits a pass: the digit is the number of
    thresholds that are enough. Where digits do not divide 32 bits, the last pass overlaps.
    """

    def add_digit(number: Int[Array, ""], found: UInt32[Array, " R"]) -> UInt32[Array, " R"]:
        shift = jnp.maximum(32 - _DIGIT_BITS * (number + 1), 0).astype(jnp.uint32)
        steps = jnp.arange(1, 1 << _DIGIT_BITS, dtype=jnp.uint32) << shift
        # behind a barrier the kernels of all passes are the same, and compile once
        tested = lax.optimization_barrier(found[None, :] + steps[:, None])
        digit = sum(passed.astype(jnp.uint32) for passed in enough(list(tested)))
        return found + (digit << shift)

    def passes(unroll: bool) -> Callable[[UInt32[Array, " R"]], UInt32[Array, " R"]]:
        count = math.ceil(32 / _DIGIT_BITS)
        return lambda found: lax.fori_loop(0, count, add_digit, found, unroll=unroll)

    # a loop would split the CUDA graph of the step; elsewhere it halves the time to compile
    start = jnp.zeros(num_rows, jnp.uint32)
    return lax.platform_dependent(start, cuda=passes(True), default=passes(False))


def _row_sums(arrays: Sequence[Int[Array, "R V"]]) -> Sequence[Int[Array, " R"]]:
    """The row sums of several arrays by one reduction, so that the vocabulary is read once."""
    zeros = [jnp.zeros((), a.dtype) for a in arrays]
    return lax.reduce(arrays, zeros, lambda a, b: [x + y for x, y in zip(a, b, strict=True)], (1,))


def _top_k_threshold(logits: Float[Array, "R V"], k: Int[Array, " R"]) -> UInt32[Array, " R"]:
    """The k-th largest key of each row, k from 1 to V."""
    keys = _ordered(logits)

    def enough(thresholds: list[UInt32[Array, " R"]]) -> list[Bool[Array, " R"]]:
        counts = _row_sums([(keys >= _column(t)).astype(jnp.int32) for t in thresholds])
        return [count >= k for count in counts]

    return _search(enough, logits.shape[0])


def _top_p_threshold(
    logits: Float[Array, "R V"], rows: SamplingRows, floor: UInt32[Array, " R"]
) -> UInt32[Array, " R"]:
    """The highest key such that what is kept from it up has a share of top_p of all that is kept.

    Probabilities are rounded to fixed point in two limbs, each short enough for V of them to sum
    within 32 bits. The unit is 2^-30 of the highest one at V = 128256: as fine as float32 sums are.
    """
    keys = _ordered(logits)
    weights = jnp.where(_above(logits, rows, floor), jnp.exp(_scaled(logits, rows)), 0)
    bits = min(16, 32 - (logits.shape[1] - 1).bit_length())
    almost_one = math.ldexp(1 - 2**-24, 2 * bits)  # the last float32 below 2^(2 bits)
    fixed = lax.optimization_barrier(jnp.round(weights * almost_one).astype(jnp.uint32))
    low_mask = jnp.uint32((1 << bits) - 1)

    def mass(thresholds: list[UInt32[Array, " R"]]) -> list[_Mass]:
        above = [jnp.where(keys >= _column(t), fixed, 0) for t in thresholds]
        sums = _row_sums([a >> bits for a in above] + [a & low_mask for a in above])
        highs, lows = sums[: len(above)], sums[len(above) :]
        return [(h + (low >> bits), low & low_mask) for h, low in zip(highs, lows, strict=True)]

    [total] = mass([jnp.zeros_like(floor)])
    share = _share(total, rows.top_p, bits)

    def enough(thresholds: list[UInt32[Array, " R"]]) -> list[Bool[Array, " R"]]:
        return [_at_least(m, share) for m in mass(thresholds)]

    return _search(enough, logits.shape[0])


def _at_least(mass: _Mass, other: _Mass) -> Bool[Array, " R"]:
    return (mass[0] > other[0]) | ((mass[0] == other[0]) & (mass[1] >= other[1]))


def _share(total: _Mass, share: Float[Array, " R"], bits: int) -> _Mass:
    """A share of a mass, to float32's precision; at least one unit, so that a token stays."""
    high, low = (limb.astype(jnp.float32) for limb in total)
    wanted = share * (high * 2.0**bits + low)
    wanted_high = jnp.floor(wanted * 2.0**-bits)
    wanted_low = jnp.maximum(jnp.ceil(wanted - wanted_high * 2.0**bits), 1)
    return wanted_high.astype(jnp.uint32), wanted_low.astype(jnp.uint32)


def _gumbel(rows: SamplingRows, size: int) -> Float[Array, "R {size}"]:
    """Standard Gumbel noise, each row from its own key and position.

    From 32 random bits and by log1p, so that the high end, which decides who wins, is not coarse:
    a token of probability 2^-28 is still drawn as often as it should be.
    """

    def draw(key: UInt32[Array, "2"], position: Int[Array, ""]) -> Float[Array, "{size}"]:
        folded = jax.random.fold_in(jax.random.wrap_key_data(key, impl="threefry2x32"), position)
        bits = jax.random.bits(folded, (size,), jnp.uint32)
        uniform = jnp.minimum((bits.astype(jnp.float32) + 0.5) * 2.0**-32, 1 - 2.0**-24)
        return -jnp.log(-jnp.log1p(-uniform))

    return jax.vmap(draw)(rows.key, rows.position)


def adjust(
    logits: Float[Array, "R V"],
    rows: SamplingRows,
    counts: Int[Array, "R V"],
    bias: Float[Array, "R V"],
) -> Float[Array, "R V"]:
    """Adds the bias (-inf forbids), then applies the repetition, frequency and presence penalties.

    `counts` is (occurrences in the output << 1) | (1 if in the prompt, else 0), int32: repetition
    reads both, frequency and presence the output only. Logits and counts that meet neutral
    parameters and a bias of 0 come back bitwise the same.
    """
    with jax.named_scope("adjust"):
        # neutral values are skipped: even adding 0 changes -0 and subnormal numbers
        logits = jnp.where(bias == 0, logits, logits + bias)
        repetition = _column(rows.repetition)
        penalized = jnp.where(logits > 0, logits / repetition, logits * repetition)
        logits = jnp.where((counts > 0) & (repetition != 1), penalized, logits)
        occurrences = (counts >> 1).astype(jnp.float32)
        penalty = _column(rows.frequency) * occurrences
        penalty = penalty + _column(rows.presence) * jnp.minimum(occurrences, 1)
        return jnp.where(penalty == 0, logits, logits - penalty)


def update_counts(
    counts: Int[Array, "slots V"],
    slots: Int[Array, " R"],
    tokens: Int[Array, " R"],
    valid: Bool[Array, " R"],
) -> Int[Array, "slots V"]:
    """Counts one more occurrence in the output for every valid row, as `adjust` reads it.

    `slots` are from 0 to slots - 1; what stands in rows that are not valid changes nothing.
    """
    return counts.at[slots, tokens].add(jnp.where(valid, 2, 0).astype(counts.dtype))


def logprobs(raw_logits: Float[Array, "R V"], tokens: Int[Array, " R"], k: int) -> LogprobResult:
    """Log-probabilities of `tokens` and of the k best tokens, under finite float32 logits.

    k is static, from 0 to V; it is fast up to about 20.
    """
    with jax.named_scope("logprobs"):
        normalizer = jax.nn.logsumexp(raw_logits, axis=1)
        chosen = jnp.take_along_axis(raw_logits, _column(tokens), axis=1)
        ids = lax.broadcasted_iota(tokens.dtype, raw_logits.shape, 1)
        ahead = _precedes(raw_logits, ids, chosen, _column(tokens))
        values, top_ids = _top(raw_logits, k)
        return LogprobResult(
            token_logprob=chosen[:, 0] - normalizer,
            token_rank=1 + jnp.sum(ahead, axis=1, dtype=jnp.int32),
            top_ids=top_ids,
            top_logprobs=values - _column(normalizer),
            logsumexp=normalizer,
        )


def _precedes(
    x: Float[Array, "R V"],
    ids: Int[Array, "R V"],
    value: Float[Array, "R 1"],
    at: Int[Array, "R 1"],
) -> Bool[Array, "R V"]:
    """Which entries go before the entry `value` of id `at` by falling value, then rising id."""
    return (x > value) | ((x == value) & (ids < at))


def _top(x: Float[Array, "R V"], k: int) -> tuple[Float[Array, "R k"], Int[Array, "R k"]]:
    """`lax.top_k` in pieces that a GPU selects without a sort; the lower id first among equals."""
    ids = lax.broadcasted_iota(jnp.int32, x.shape, 1)
    pieces: list[tuple[Array, Array]] = []
    for start in range(0, max(k, 1), _TOP_K_PIECE):
        # without the barrier XLA sorts when only a slice of the result is read
        values, top_ids = lax.optimization_barrier(lax.top_k(x, min(_TOP_K_PIECE, k - start)))
        pieces.append((values, top_ids))
        if start + _TOP_K_PIECE < k:
            taken = _precedes(x, ids, values[:, -1:], top_ids[:, -1:] + 1)
            x = jnp.where(taken, -jnp.inf, x)
    values, top_ids = (jnp.concatenate(part, axis=1) for part in zip(*pieces, strict=True))
    return values, top_ids


def _column(x: Array) -> Array:
    """[R] as [R, 1], to broadcast over the vocabulary."""
    return x[:, None]
