"""Sampling inside the jitted step: masks and penalties, filters, draws, log-probabilities.

All of this is traced. The token of a row depends on that row alone, bitwise: it is the same in a
batch of any size, whatever the other rows ask for. Two choices give that:

* Noise is drawn row by row, from the row's key folded with the position of the token.
* What min_p, top_k and top_p keep is always the tokens from some logit upwards, and what decides
  is counts and sums of integers, which come out the same in any order of addition.

A pass over the logits of 256 rows takes as long as the GPU takes to read 131 MB. So the vocabulary
is drawn from by way of blocks (`draws.py`), and for top_p no threshold is searched: draws from more
than the nucleus are tested, as in https://flashinfer.ai/2025/03/10/sampling.html, and a pass tests
several. A step in which all rows use filters takes three passes.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt32

from . import draws, thresholds
from .draws import Blocks, Draws, Mass

_DRAWS = 16
"""Draws a row of which a round of `_settle` tests those that matter."""
_PIVOTS = 4
"""How many it tests at most, in one pass over the logits."""
_TOP_K_PIECE = 16
"""The largest k for which XLA on a GPU selects instead of sorting."""


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

    @property
    def penalized(self) -> Bool[Array, " R"]:
        """Rows with a penalty."""
        return (self.presence != 0) | (self.frequency != 0) | (self.repetition != 1)


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
    """Draws one token a row, int32, of those that temperature, min_p, top_k and top_p keep.

    Logits are float32; they may be -inf (forbidden), not NaN or +inf. Rows of temperature 0 get
    `greedy(logits)`. A row in which every token is forbidden gets token 0: the host prevents it.
    """
    with jax.named_scope("sample"):
        blocks = draws.split(logits, rows.temperature)
        floor = _floor(blocks, rows, logits.shape[1])
        [masses] = draws.block_masses(blocks, [_from(floor)(blocks.logits)])
        drawn = _draw(blocks, rows, masses, _from(floor), 0)
        return lax.cond(
            jnp.any(~blocks.greedy & (rows.top_p < 1)),
            lambda: _in_nucleus(blocks, rows, floor, masses, drawn),
            lambda: drawn.tokens[:, 0],
        )


def kept_tokens(logits: Float[Array, "R V"], rows: SamplingRows) -> Bool[Array, "R V"]:
    """The tokens `sample` draws from: min_p, then top_k, then top_p; arbitrary at temperature 0.

    min_p keeps the tokens of at least min_p times the highest probability. top_k keeps what ties
    with the k-th logit, too. top_p keeps the smallest set of highest logits, again with all that
    tie, whose share of the mass left by the other two is at least top_p. That is: a token stays if
    the mass of the logits above its own is less than that share.
    """
    blocks = draws.split(logits, rows.temperature)
    floor = _floor(blocks, rows, logits.shape[1])
    [masses] = draws.block_masses(blocks, [_from(floor)(blocks.logits)])
    share = draws.in_fixed_point(masses).sum().share(rows.top_p)
    edge = jnp.where(rows.top_p < 1, _nucleus_edge(blocks, share), -jnp.inf)
    return logits >= _column(jnp.maximum(floor, edge))


def _floor(blocks: Blocks, rows: SamplingRows, vocab_size: int) -> Float[Array, " R"]:
    """The lowest logit that min_p and top_k keep; the highest at temperature 0."""
    # behind a barrier no compiler makes one operation of the product and the sum
    distance = jnp.where(blocks.greedy, 0, rows.temperature * jnp.log(rows.min_p))
    floor = blocks.highest + lax.optimization_barrier(distance)
    by_k = ~blocks.greedy & (rows.top_k > 0) & (rows.top_k < vocab_size)
    few = by_k & (rows.top_k <= thresholds.FAST_TOP_K)
    whole = blocks.logits.reshape(len(floor), -1)
    searches = (
        (few, lambda: thresholds.kth_largest(blocks.logits, blocks.best, rows.top_k)),
        (by_k & ~few, lambda: thresholds.kth_largest_of_many(whole, rows.top_k)),
    )
    for active, search in searches:
        floor = jnp.maximum(floor, _if_any(active, search))
    return floor


def _if_any(
    active: Bool[Array, " R"], search: Callable[[], Float[Array, " R"]]
) -> Float[Array, " R"]:
    """The thresholds of the active rows, -inf for the others; no search where none is active."""
    off = jnp.full(active.shape, -jnp.inf)
    return lax.cond(jnp.any(active), lambda: jnp.where(active, search(), off), lambda: off)


def _from(floor: Float[Array, " R"]) -> draws.Keeps:
    return lambda logits: logits >= floor[:, None, None]


def _above(pivot: Float[Array, " R"]) -> draws.Keeps:
    return lambda logits: logits > pivot[:, None, None]


def _draw(
    blocks: Blocks,
    rows: SamplingRows,
    masses: Float[Array, "R B"],
    keeps: draws.Keeps,
    number: int,
) -> Draws:
    """The draws of round `number`, whose noise no other round has."""
    numbers = jnp.arange(number * _DRAWS, (number + 1) * _DRAWS)
    # behind barriers the kernels of all rounds are the same, and compile once
    masses, numbers = lax.optimization_barrier((masses, numbers))
    noise = draws.exponentials(rows.key, rows.position, numbers, draws.noise_size(blocks))
    return Draws(*lax.optimization_barrier(draws.draw(blocks, masses, keeps, noise)))


class _Row(NamedTuple):
    """Where the rows of a step are on the way to a token of their nucleus."""

    token: Int[Array, " R"]
    """Final where not open."""
    open: Bool[Array, " R"]
    pivot: Float[Array, " R"]
    """A logit outside of the nucleus, where open."""
    masses: Float[Array, "R B"]
    """Of the logits above the pivot."""


def _in_nucleus(
    blocks: Blocks,
    rows: SamplingRows,
    floor: Float[Array, " R"],
    masses: Float[Array, "R B"],
    drawn: Draws,
) -> Int[Array, " R"]:
    """A token of its nucleus for each row that has top_p, the first draw for the others.

    A draw is in the nucleus if the mass above it is less than top_p of all; if it is not, the next
    one is drawn from what lies above it. Of 256 rows with top_p=0.8 one needs a second round in
    some 3 % of steps; the search for the nucleus' edge is for very small top_p.
    """
    share = draws.in_fixed_point(masses).sum().share(rows.top_p)
    by_p = ~blocks.greedy & (rows.top_p < 1)
    state = _test(blocks, share, drawn, drawn.tokens[:, 0], by_p)

    def go_on(state: _Row) -> Int[Array, " R"]:
        for number in (1, 2):
            drawn = _draw(blocks, rows, state.masses, _above(state.pivot), number)
            state = _test(blocks, share, drawn, state.token, state.open)
        return lax.cond(jnp.any(state.open), search, lambda state: state.token, state)

    def search(state: _Row) -> Int[Array, " R"]:
        keeps = _from(jnp.maximum(floor, _nucleus_edge(blocks, share)))
        [masses] = draws.block_masses(blocks, [keeps(blocks.logits)])
        drawn = _draw(blocks, rows, masses, keeps, 3)
        return jnp.where(state.open, drawn.tokens[:, 0], state.token)

    return lax.cond(jnp.any(state.open), go_on, lambda state: state.token, state)


def _test(
    blocks: Blocks, share: Mass, drawn: Draws, token: Int[Array, " R"], still: Bool[Array, " R"]
) -> _Row:
    """Gives the rows that are open still the first draw that is in their nucleus, if one is."""
    pivots = _rising(drawn)
    logits = jnp.stack([pivot for pivot, _ in pivots])
    masses = draws.block_masses(blocks, [_above(pivot)(blocks.logits) for pivot in logits])
    outside = draws.in_fixed_point(jnp.stack(masses, 1)).sum().at_least(share.column())
    for number, (_, drawn_token) in enumerate(pivots):
        token = jnp.where(still & ~outside[:, number], drawn_token, token)
        still = still & outside[:, number]
    return _Row(*lax.optimization_barrier((token, still, logits[-1], masses[-1])))


def _rising(drawn: Draws) -> list[tuple[Float[Array, " R"], Int[Array, " R"]]]:
    """The first draws that each exceed all before them; the last again where there are fewer.

    Only these need a test: a draw that is below an earlier one is outside if that one is.
    """
    columns = list(zip(drawn.logits.T, drawn.tokens.T, strict=True))
    pivots = columns[:1] * _PIVOTS
    number = jnp.zeros(len(drawn.tokens), jnp.int32)
    for logit, token in columns[1:]:
        higher = logit > pivots[-1][0]
        number = number + higher.astype(jnp.int32)
        for place in range(1, _PIVOTS):
            new = higher & (number <= place)
            before = pivots[place]
            pivots[place] = jnp.where(new, logit, before[0]), jnp.where(new, token, before[1])
    return pivots


def _nucleus_edge(blocks: Blocks, share: Mass) -> Float[Array, " R"]:
    """The highest logit such that what is kept from it upwards has at least the share."""

    def enough(tested: list[Float[Array, " R"]]) -> list[Bool[Array, " R"]]:
        masses = draws.block_masses(blocks, [_from(t)(blocks.logits) for t in tested])
        enough = draws.in_fixed_point(jnp.stack(masses, 1)).sum().at_least(share.column())
        return list(enough.T)

    return thresholds.search(enough, len(share.high))


def adjust(
    logits: Float[Array, "R V"],
    rows: SamplingRows,
    counts: Int[Array, "R V"],
    bias: Float[Array, "R V"],
) -> Float[Array, "R V"]:
    """Adds the bias (-inf forbids), then applies the repetition, frequency and presence penalties.

    `counts` is (occurrences in the output << 1) | (1 if in the prompt, else 0): repetition
    reads both, frequency and presence the output only. Logits and counts that meet neutral
    parameters and a bias of 0 come back bitwise the same.
    """
    with jax.named_scope("adjust"):
        # neutral values are skipped: even adding 0 changes -0 and subnormal numbers
        logits = jnp.where(bias == 0, logits, logits + bias)
        repetition = _column(rows.repetition)
        penalized = logits * jnp.where(logits > 0, _column(1 / rows.repetition), repetition)
        logits = jnp.where((counts > 0) & (repetition != 1), penalized, logits)
        occurrences = (counts >> 1).astype(jnp.float32)
        penalty = _column(rows.frequency) * occurrences
        penalty = penalty + jnp.where(occurrences > 0, _column(rows.presence), 0)
        return jnp.where(penalty == 0, logits, logits - penalty)


def mask(logits: Float[Array, "R V"], masks: Int[Array, "R W"]) -> Float[Array, "R V"]:
    """-inf where the bit of a token, v % 32 of word v / 32, is 0."""
    bits = (masks[:, :, None] >> jnp.arange(32)) & 1
    allowed = bits.reshape(len(masks), -1)[:, : logits.shape[1]]
    return jnp.where(allowed == 1, logits, -jnp.inf)


def update_counts(
    counts: Int[Array, "slots V"],
    slots: Int[Array, " R"],
    tokens: Int[Array, " R"],
    valid: Bool[Array, " R"],
) -> Int[Array, "slots V"]:
    """Counts one more occurrence in the output for every valid row, as `adjust` reads it.

    `slots` are from 0 to slots - 1; what stands in rows that are not valid changes nothing. A count
    that has no room for one more stays.
    """
    room = counts[slots, tokens] < jnp.iinfo(counts.dtype).max - 1
    return counts.at[slots, tokens].add(jnp.where(valid & room, 2, 0).astype(counts.dtype))


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
        # without the barrier XLA sorts when only a slice of the result is read; it fails on one
        # that takes a top_k just as it is, in a program for several devices
        found = lax.top_k(x, min(_TOP_K_PIECE, k - start))
        top_ids, values = lax.optimization_barrier(found[::-1])
        pieces.append((values, top_ids))
        if start + _TOP_K_PIECE < k:
            taken = _precedes(x, ids, values[:, -1:], top_ids[:, -1:] + 1)
            x = jnp.where(taken, -jnp.inf, x)
    values, top_ids = (jnp.concatenate(part, axis=1) for part in zip(*pieces, strict=True))
    return values, top_ids


def _column(x: Array) -> Array:
    """[R] as [R, 1], to broadcast over the vocabulary."""
    return x[:, None]
