"""How the products of `hopper_matmul` are cut into tiles, and which way should be the fastest."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple, TypeVar

from jax.experimental import pallas as pl

_SMS = 132
_SHARED_BYTES = 225 * 1024
"""For arrays; barriers lie beside them."""
ROWS = 64
"""Of one wgmma, and so of a warpgroup."""
LINE = 64
"""Elements of E in 128 bytes, which a copy lays out as one."""
_SWEEP = 16
"""Tiles of tokens that meet a tile of W before the next one: x stays in L2, W passes by."""
_FLOPS, _MEMORY, _CACHE = 6.4e6, 3.2e4, 4.4e4
"""Of an SM in a microsecond: operations, bytes from memory, and bytes from L2."""
_EPILOGUE = 1.5
"""Microseconds in which a thread block does not multiply, for each tile."""


class Tuning(NamedTuple):
    """What decides about speed, not about meaning."""

    groups: int
    """Warpgroups that multiply: 1, 2 or 3, each for 64 tokens."""
    columns: int
    """Of the result in a tile: a multiple of 8, at most 128; of 16 where blocks share W."""
    share: Literal["w", "x"] | None = None
    """What the two blocks of a cluster share; None is no clusters."""
    depth: int = LINE
    """Elements of E in a stage: a multiple of 64. More are fewer and longer copies."""
    stages: int | None = None
    """Of the ring; None is as many as fit, up to 4, or 8 of a joint product."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is fixed when a kernel is traced."""

    tokens: int
    """T, a multiple of 8: copies can stop at no other row."""
    out: int
    """F, or O."""
    width: int
    """E."""
    low: int
    """K, or 0 without an update; of a joint product M."""
    tuning: Tuning

    @property
    def rows(self) -> int:
        """Tokens of a tile."""
        return self.tuning.groups * ROWS

    @property
    def cluster(self) -> int:
        return 1 if self.tuning.share is None else 2

    @property
    def high(self) -> int:
        """Tiles of tokens that a cluster does at once."""
        return 2 if self.tuning.share == "w" else 1

    @property
    def wide(self) -> int:
        """Tiles of columns that a cluster does at once."""
        return 2 if self.tuning.share == "x" else 1

    @property
    def down(self) -> int:
        """Places of a cluster along the tokens."""
        return pl.cdiv(self.tokens, self.rows * self.high)

    @property
    def tiles(self) -> int:
        """Along the columns."""
        return pl.cdiv(self.out, self.tuning.columns)

    @property
    def across(self) -> int:
        """Places of a cluster along the columns."""
        return pl.cdiv(self.tiles, self.wide)

    @property
    def sweep(self) -> int:
        """Places of a cluster along the tokens before it moves on along the columns."""
        return _SWEEP // self.high

    @property
    def clusters(self) -> int:
        return min(_SMS // self.cluster, self.down * self.across)

    @property
    def waves(self) -> int:
        return pl.cdiv(self.down * self.across, self.clusters)

    @property
    def steps(self) -> int:
        """Over E, of one thread block."""
        return self.width // self.tuning.depth

    @property
    def all_steps(self) -> int:
        """Of a tile."""
        return self.steps

    @property
    def products(self) -> int:
        """That make a step."""
        return 1

    @property
    def weights(self) -> int:
        """Rows of W in a stage."""
        return self.tuning.columns

    @property
    def copies(self) -> int:
        """That fill a stage."""
        return 2

    @property
    def most_stages(self) -> int:
        return 4

    @property
    def stages(self) -> int:
        out = 2 * self.rows * self.tuning.columns
        stage = 2 * self.tuning.depth * (self.rows + self.weights)
        most = self.tuning.stages or self.most_stages
        return min(most, (_SHARED_BYTES - out) // stage, self.steps)

    @property
    def fits(self) -> bool:
        return (
            self.out % 8 == 0
            and self.low % 8 == 0
            and self.width % self.tuning.depth == 0
            and (self.tuning.share != "w" or self.tuning.columns % 16 == 0)
            and self.stages > 1
        )

    @property
    def cost(self) -> float:
        """A guess at the time, in microseconds."""
        raise NotImplementedError


class GatedPlan(Plan):
    """The update counts for nothing in the choice."""

    @property
    def all_steps(self) -> int:
        return self.steps + pl.cdiv(self.low, self.tuning.depth)

    @property
    def products(self) -> int:
        """One, or two of half the width.

        The kernel starts with as many registers a thread as all its threads can have alike, and
        ptxas wants those of one product to fit in them.
        """
        return 1 if self.tuning.groups < 3 or self.tuning.columns <= 64 else 2

    @property
    def weights(self) -> int:
        return 2 * self.tuning.columns

    @property
    def copies(self) -> int:
        return 3

    @property
    def cost(self) -> float:
        columns = 2 * self.tuning.columns
        flops = 2 * self.rows * columns * self.width
        loaded = 2 * self.width * (self.rows / self.wide + columns / self.high)
        meet = min(_SWEEP, self.down * self.high)
        w = 2 * self.width * columns / meet
        tile = max(flops / _FLOPS, loaded / _CACHE, w / _MEMORY)
        return self.waves * (tile + _EPILOGUE)


class JointPlan(Plan):
    """Tiles of W, then those of A, all at once: one for each thread block."""

    @property
    def first_low(self) -> int:
        """The first tile of A."""
        return pl.cdiv(self.out, self.tuning.columns)

    @property
    def tiles(self) -> int:
        return self.first_low + pl.cdiv(self.low, self.tuning.columns)

    @property
    def most_stages(self) -> int:
        return 8

    @property
    def fits(self) -> bool:
        # the last copy of a result ends at a multiple of what a copy lays out as one, or before one
        unit = math.gcd(self.tuning.columns, LINE)
        ends = all(n % unit == 0 or n < unit for n in (self.out, self.low))
        return super().fits and ends and self.down == self.waves == 1

    @property
    def cost(self) -> float:
        """That of the bytes that the busiest SM takes from memory."""
        return 2 * self.width * self.tuning.columns / _MEMORY


_P = TypeVar("_P", bound=Plan)


def _cheapest(plans: Iterable[_P]) -> _P | None:
    return min((plan for plan in plans if plan.fits), key=lambda plan: plan.cost, default=None)


def padded(tokens: int) -> int:
    return pl.cdiv(tokens, 8) * 8


def _gated_ways(tokens: int, width: int) -> Iterator[Tuning]:
    """What was fast for so many tokens; how wide tiles should be depends on F, too."""
    for columns in range(128, 32, -8):
        if tokens <= 2 * ROWS:
            depth = LINE if width % (2 * LINE) else 2 * LINE
            yield Tuning(pl.cdiv(tokens, ROWS), columns, None, depth)
        elif tokens <= 3 * ROWS:
            yield Tuning(3, columns, "x")
        elif columns % 16 == 0:
            yield from (Tuning(groups, columns, "w") for groups in (2, 3))


def _joint_ways(width: int) -> Iterator[Tuning]:
    for columns in range(8, 136, 8):
        yield Tuning(1, columns, None, LINE if width % (2 * LINE) else 2 * LINE)


@functools.cache
def gated_plan(tokens: int, out: int, width: int, low: int) -> GatedPlan | None:
    """The one with the lowest cost, if there is any that fits."""
    ways = _gated_ways(tokens, width)
    return _cheapest(GatedPlan(padded(tokens), out, width, low, way) for way in ways)


@functools.cache
def joint_plan(tokens: int, out: int, width: int, low: int) -> JointPlan | None:
    """The one with the lowest cost, if there is any that fits."""
    return _cheapest(JointPlan(tokens, out, width, low, way) for way in _joint_ways(width))
