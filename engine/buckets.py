"""The compiled shapes: the only place that decides them."""

import dataclasses
import enum
import functools
import itertools


class Variant(enum.IntEnum):
    """What a program does after the logits. A later one can stand in for an earlier one."""

    GREEDY = 0
    """Argmax."""
    SAMPLED = 1
    """Temperature, top_k, top_p, min_p, with one key a row."""
    PENALIZED = 2
    """SAMPLED, and penalties and bias."""
    FULL = 3
    """PENALIZED, and log-probabilities."""


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled shape of the step."""

    decode: bool
    """True: one token a row. False: mixed, tokens of any rows."""
    tokens: int
    """T, the tokens it takes; equal to `rows` where `decode`."""
    rows: int
    """R, the rows it takes."""
    variant: Variant
    one_path: bool = False
    """Every row goes the same way, so that its bits do not depend on the batch."""
    adapters: bool = False
    """Applies adapters; rows without one are right, too."""

    def covers(self, other: "Program") -> bool:
        """Whether a batch for `other` can be padded to run here."""
        return (
            (other.decode or not self.decode)
            and self.tokens >= other.tokens
            and self.rows >= other.rows
            and self.variant >= other.variant
            and self.adapters >= other.adapters
        )


_CHEAP_ROWS = 64
"""Up to here a decode step on a GPU reads weights all the time; beyond, padded rows cost time."""


@functools.cache  # every step asks
def ladder(first: int, last: int, growth: int) -> tuple[int, ...]:
    """`first` and what grows from it by `growth`, up to `last`, which ends it."""
    steps = []
    while first < last:
        steps.append(first)
        first *= growth
    return (*steps, last)


@functools.cache
def _fine_ladder(last: int) -> tuple[int, ...]:
    """Powers of two, and from `_CHEAP_ROWS` on three steps between them."""
    steps = [
        power + power * quarter // 4
        for power in ladder(1, last, 2)[:-1]
        for quarter in (range(4) if power >= _CHEAP_ROWS else range(1))
    ]
    return (*(step for step in steps if step < last), last)


class Auxiliary(enum.Enum):
    """Programs beside the step, one shape each."""

    PATCH_PAGES = enum.auto()
    """Page-table entries that a step's buffer has no room for."""
    WRITE_TABLES = enum.auto()
    """Counts and bias of one slot."""
    WRITE_BIAS = enum.auto()
    """Bias of one slot."""
    WRITE_MASKS = enum.auto()
    """Masks of AUXILIARY_MASKS slots."""
    WRITE_ADAPTER = enum.auto()
    """An adapter into its slot."""
    TOP_LOGPROBS = enum.auto()
    """Log-probabilities of given tokens and of the likeliest, from hidden states."""
    ALL_LOGPROBS = enum.auto()
    """Log-probabilities of the whole vocabulary, from hidden states."""


@dataclasses.dataclass(frozen=True)
class Encoding:
    """The program that makes features of media, in one of its sizes."""

    kind: str
    """Of its media, as in `multimodal.names.KINDS`."""
    units: int
    """What it takes, as the model's encoder counts: pictures, crops, patches or clips."""


AUXILIARY_PATCHES = 1024
"""Entries PATCH_PAGES writes at once."""
AUXILIARY_MASKS = 16
"""Slots WRITE_MASKS writes at once."""
AUXILIARY_TOKENS = 64
"""Hidden states the two log-probability programs take at once."""


@dataclasses.dataclass(frozen=True)
class Buckets:
    """The ladders of shapes between one row and the engine's limits."""

    max_num_seqs: int
    max_num_batched_tokens: int
    growth: int = 2
    """Factor between neighbouring mixed shapes: 2 wastes little, 4 compiles less."""
    fine: bool = False
    """More decode shapes of the frequent variants, where padded rows cost time."""
    one_program: bool = False
    """Only the largest mixed shape, in the variant FULL, for results that are always the same."""
    adapters: bool = False
    """Every program twice, without adapters and with; one that is alone has them."""

    @property
    def decode_rows(self) -> tuple[int, ...]:
        return self._decode_rows(Variant.GREEDY)

    def _decode_rows(self, variant: Variant) -> tuple[int, ...]:
        if self.fine and variant <= Variant.SAMPLED:
            return _fine_ladder(self.max_num_seqs)
        return ladder(1, self.max_num_seqs, 2)

    @property
    def mixed_tokens(self) -> tuple[int, ...]:
        smallest = min(64, self.max_num_batched_tokens)
        return ladder(smallest, self.max_num_batched_tokens, self.growth)

    def decode(self, rows: int, variant: Variant, *, adapters: bool = False) -> Program:
        """The smallest decode program for `rows` rows."""
        if self.one_program:
            return self.largest
        fitting = next(r for r in self._decode_rows(variant) if r >= rows)
        return Program(True, fitting, fitting, variant, adapters=adapters)

    def mixed(self, tokens: int, variant: Variant, *, adapters: bool = False) -> Program:
        """The smallest mixed program for `tokens` tokens."""
        if self.one_program:
            return self.largest
        fitting = next(t for t in self.mixed_tokens if t >= tokens)
        rows = min(fitting, self.max_num_seqs)
        return Program(False, fitting, rows, variant, adapters=adapters)

    def programs(self) -> list[Program]:
        """All programs, in the order in which a fresh engine is likely to need them."""
        if self.one_program:
            return [self.largest]
        made: dict[Program, None] = {}
        for variant, adapters in itertools.product(Variant, (False, True)[: 1 + self.adapters]):
            kind = {"variant": variant, "adapters": adapters}
            mixed = [self.mixed(tokens, **kind) for tokens in self.mixed_tokens]
            decode = [self.decode(rows, **kind) for rows in self.decode_rows]
            made |= dict.fromkeys((mixed[0], decode[0], *mixed, *decode))
        return list(made)

    @property
    def largest(self) -> Program:
        """The program with the largest temporaries."""
        tokens, rows = self.max_num_batched_tokens, self.max_num_seqs
        kind = {"one_path": self.one_program, "adapters": self.adapters}
        return Program(False, tokens, rows, Variant.FULL, **kind)
