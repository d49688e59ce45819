"""What the scheduler hands out: one step. Plain Python, no jax."""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from .media import Medium
from .request import Sequence

if TYPE_CHECKING:
    from .adapter_arrays import LoadedAdapter


@dataclasses.dataclass(slots=True)
class Chunk:
    """`count` tokens of `sequence` from position `start` on; `samples` where they are its last."""

    sequence: Sequence
    start: int
    count: int
    samples: bool


@dataclasses.dataclass(slots=True)
class Schedule:
    """One step: what it computes, and what changed on the host to make it possible."""

    chunks: list[Chunk] = dataclasses.field(default_factory=list)
    """Decode rows of running sequences, then prompts that go on, then new sequences. Not empty."""
    decode_only: bool = False
    """Every chunk is one token and samples."""
    num_tokens: int = 0
    preempted: list[Sequence] = dataclasses.field(default_factory=list)
    """Lost their slot and pages, and wait again."""
    admitted: list[Sequence] = dataclasses.field(default_factory=list)
    """Got a slot."""
    new_pages: list[tuple[int, int, int]] = dataclasses.field(default_factory=list)
    """Changed entries of the page table: (slot, index, page). No (slot, index) twice."""
    loads: "list[tuple[int, LoadedAdapter]]" = dataclasses.field(default_factory=list)
    """Adapters that the step needs, and the adapter slot to write each to before. No slot twice."""
    encodes: list[tuple[Medium, np.ndarray]] = dataclasses.field(default_factory=list)
    """Media to encode before the step, and the rows for the features of each."""
