"""Draws tokens by way of blocks of the vocabulary, so that few random numbers are needed.

A token is drawn in three choices: a group of blocks, a block in it, a token in that. What a choice
needs of the vocabulary is the mass of each block. The numbers are the same in every batch: sums are
of integers, and floats meet only in products and quotients, which no compiler may round elsewise.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt32

from .thresholds import row_sums

BLOCK = 128
"""Tokens of a block."""
_GROUP = 32
"""Blocks of a group."""
_UNIT_BITS = 25
"""Probabilities in a block count in 2^-25 of its highest one: BLOCK of them sum within 32 bits."""
_ALMOST_ONE = 2.0**_UNIT_BITS - 2
"""The last float32 below 2^25."""

Keeps = Callable[[Float[Array, "R X Y"]], Bool[Array, "R X Y"]]
"""Which logits stay in play, from some threshold of each row upwards."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Blocks:
    """Logits of R rows, cut into B blocks of the vocabulary."""

    logits: Float[Array, "R B size"]
    """-inf where a block goes beyond the vocabulary."""
    best: Float[Array, "R B"]
    """The highest of each block."""
    highest: Float[Array, " R"]
    """The highest of each row."""
    scale: Float[Array, " R"]
    """1 / temperature; 1 where the temperature is 0."""
    greedy: Bool[Array, " R"]
    """Where the temperature is 0."""


class Mass(NamedTuple):
    """Sums of probabilities in fixed point, exact in any order of addition."""

    high: UInt32[Array, "*shape"]
    low: UInt32[Array, "*shape"]
    bits: int
    """Bits of the low limb."""

    def at_least(self, other: "Mass") -> Bool[Array, "*shape"]:
        return (self.high > other.high) | ((self.high == other.high) & (self.low >= other.low))

    def sum(self) -> "Mass":
        """Over the last axis. The mass of all B blocks does not overflow."""
        high, low = row_sums([self.high, self.low])
        return Mass(high + (low >> self.bits), low & ((1 << self.bits) - 1), self.bits)

    def column(self) -> "Mass":
        """[R] as [R, 1], to compare with several."""
        return Mass(self.high[:, None], self.low[:, None], self.bits)

    def share(self, share: Float[Array, "*shape"]) -> "Mass":
        """A share of it to float32's precision; at least one unit, so that a token stays."""
        wanted = share * self.float()
        high = jnp.floor(wanted * 2.0**-self.bits)
        low = jnp.maximum(jnp.ceil(wanted - high * 2.0**self.bits), 1)
        return Mass(high.astype(jnp.uint32), low.astype(jnp.uint32), self.bits)

    def float(self) -> Float[Array, "*shape"]:
        return self.high.astype(jnp.float32) * 2.0**self.bits + self.low.astype(jnp.float32)


class Draws(NamedTuple):
    """Independent draws of each row."""

    tokens: Int[Array, "R J"]
    logits: Float[Array, "R J"]
    """Of these tokens."""


def split(logits: Float[Array, "R V"], temperature: Float[Array, " R"]) -> Blocks:
    """Reads the logits once, for the maxima."""
    missing = -logits.shape[1] % BLOCK
    padded = jnp.pad(logits, ((0, 0), (0, missing)), constant_values=-jnp.inf)
    blocks = padded.reshape(len(logits), -1, BLOCK)
    # without the barrier the maximum of maxima would be another pass over the logits
    best = lax.optimization_barrier(jnp.max(blocks, axis=2))
    greedy = temperature == 0
    scale = 1 / jnp.where(greedy, 1, temperature)
    return Blocks(blocks, best, jnp.max(best, axis=1), scale, greedy)


def block_masses(
    blocks: Blocks, kept: Sequence[Bool[Array, "R B size"]]
) -> list[Float[Array, "R B"]]:
    """The mass of what is kept in each block, for several masks in one pass over the logits.

    1 is the probability of the row's most likely token. Inside a block integers are summed, in
    units of its most likely token, so a block of unlikely tokens is as fine as any.
    """
    weights = _weights(blocks, blocks.logits, blocks.best[:, :, None])
    fixed = jnp.round(weights * _ALMOST_ONE).astype(jnp.uint32)
    sums = row_sums([jnp.where(mask, fixed, 0) for mask in kept])
    unit = _weights(blocks, blocks.best[:, :, None], blocks.highest[:, None, None])[:, :, 0]
    return [s.astype(jnp.float32) * (unit * 2.0**-_UNIT_BITS) for s in sums]


def _weights(
    blocks: Blocks, logits: Float[Array, "R X Y"], highest: Float[Array, "R X2 Y2"]
) -> Float[Array, "R X Y"]:
    """exp((logit - highest) / temperature), at most 1; 0 for what is forbidden."""
    distance = logits - jnp.where(jnp.isfinite(highest), highest, 0)
    return jnp.exp(distance * blocks.scale[:, None, None])


def in_fixed_point(masses: Float[Array, "*shape B"]) -> Mass:
    """Masses of blocks, ready to be summed over blocks. The unit is 2^-37 where B is 1002."""
    spare = max(1, (masses.shape[-1] - 1).bit_length())
    bits = 32 - spare  # a block's mass is below BLOCK, 2^7: both limbs of B of them fit 32 bits
    scaled = masses * 2.0 ** (bits - 7)
    high = jnp.floor(scaled)
    low = jnp.floor((scaled - high) * 2.0**bits)
    return Mass(high.astype(jnp.uint32), low.astype(jnp.uint32), bits)


def draw(
    blocks: Blocks,
    masses: Float[Array, "R B"],
    keeps: Keeps,
    noise: Float[Array, "R J N"],
) -> Draws:
    """Draws J tokens a row of those that `keeps`, which weigh `masses`; needs `noise_size` noise.

    Rows of temperature 0 get the first token of those kept, each time; so do rows without any mass.
    """
    num_rows, num_blocks = masses.shape
    rows = jnp.arange(num_rows)[:, None]
    num_groups = -(-num_blocks // _GROUP)
    padding = ((0, 0), (0, num_groups * _GROUP - num_blocks))
    limbs = in_fixed_point(masses)
    high, low = (_groups(jnp.pad(limb, padding)) for limb in (limbs.high, limbs.low))
    of_groups = Mass(high, low, limbs.bits).sum().float()
    group = _race(blocks, of_groups[:, None, :], noise[:, :, :num_groups])
    of_group = _groups(jnp.pad(masses, padding)).at[rows, group].get(mode="promise_in_bounds")
    inside = _race(blocks, of_group, noise[:, :, num_groups : num_groups + _GROUP])
    block = jnp.minimum(group * _GROUP + inside, num_blocks - 1)
    logits = blocks.logits.at[rows, block].get(mode="promise_in_bounds")
    best = blocks.best.at[rows, block].get(mode="promise_in_bounds")
    weights = jnp.where(keeps(logits), _weights(blocks, logits, best[:, :, None]), 0)
    token = _race(blocks, weights, noise[:, :, num_groups + _GROUP :])
    drawn = jnp.take_along_axis(logits, token[:, :, None], axis=2)[:, :, 0]
    return Draws(block * BLOCK + token, drawn)


def _groups(x: Array) -> Array:
    return x.reshape(len(x), -1, _GROUP)


def _race(
    blocks: Blocks, weights: Float[Array, "R J1 N"], noise: Float[Array, "R J N"]
) -> Int[Array, "R J"]:
    """An index, drawn in proportion to the weights: of exponential clocks the first one to ring.

    argmax(weight / noise) is the Gumbel argmax of log(weight).
    """
    greedy = blocks.greedy[:, None, None]
    race = jnp.where(greedy, (weights > 0).astype(jnp.float32), weights / noise)
    return jnp.argmax(race, axis=2).astype(jnp.int32)


def noise_size(blocks: Blocks) -> int:
    """Random numbers that a draw takes: one a group, one a block of a group, one a token of it."""
    return -(-blocks.best.shape[1] // _GROUP) + _GROUP + BLOCK


def exponentials(
    key: UInt32[Array, "R 2"], position: Int[Array, " R"], numbers: Int[Array, " J"], size: int
) -> Float[Array, "R J {size}"]:
    """Exponential noise, each row from its own key and position and the number of the draw.

    From 32 random bits and by log1p, so that the low end, which decides who wins, is not coarse: a
    token of probability 2^-28 is still drawn as often as it should be.
    """

    def of_draw(key: Array, number: Int[Array, ""]) -> Float[Array, "{size}"]:
        bits = jax.random.bits(jax.random.fold_in(key, number), (size,), jnp.uint32)
        uniform = jnp.minimum((bits.astype(jnp.float32) + 0.5) * 2.0**-32, 1 - 2.0**-24)
        return -jnp.log1p(-uniform)

    def of_row(key: UInt32[Array, "2"], position: Int[Array, ""]) -> Float[Array, "J {size}"]:
        folded = jax.random.fold_in(jax.random.wrap_key_data(key, impl="threefry2x32"), position)
        return jax.vmap(lambda n: of_draw(folded, n))(numbers)

    return lax.optimization_barrier(jax.vmap(of_row)(key, position))
