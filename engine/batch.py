"""One step's batch as one packed int32 buffer: written here by the host, unpacked in the step.

Layout, in this order: `rows` [R, len(RowField)], `patches` [N, 3] and, in mixed programs, `tokens`
[T] and the row of each token [T]. Floats are stored by their bits.
"""

import enum
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from .buckets import Program
    from .request import Sequence
    from .sampling_params import SamplingParams
    from .scheduler import Schedule


class RowField(enum.IntEnum):
    """Columns of the row table."""

    SLOT = 0
    START = 1
    """Position of the row's first token of this step."""
    LENGTH = 2
    """Tokens of the sequence once this step is done: the position of the token sampled."""
    QUERY_START = 3
    TOKEN = 4
    """Decode programs: the input token; -1 is the one the slot sampled last."""
    SAMPLES = 5
    """1 where the row samples a token, 0 where its prompt goes on in a later step."""
    TOP_K = 6
    KEY_0 = 7
    KEY_1 = 8
    BIASED = 9
    """1 where the slot has a bias of its own in the tables."""
    MASKED = 10
    """1 where the slot has a mask of its own in the tables."""
    ADAPTER = 11
    """Slot of the row's adapter; the number of slots is none."""
    TEMPERATURE = 12
    """This column and those after it hold float32 bits."""
    TOP_P = 13
    MIN_P = 14
    PRESENCE = 15
    FREQUENCY = 16
    REPETITION = 17


NUM_FIELDS = len(RowField)


class Layout(NamedTuple):
    """Sizes of the sections of a program's packed buffer."""

    rows: int
    patches: int
    tokens: int
    """0 in decode programs, whose rows carry their token."""

    @classmethod
    def of(cls, program: "Program", page_size: int) -> "Layout":
        """A decode row can enter at most one new page; a mixed step one per page of tokens more."""
        if program.decode:
            return cls(program.rows, program.rows, 0)
        return cls(program.rows, program.rows + -(-program.tokens // page_size), program.tokens)

    @property
    def size(self) -> int:
        return self.rows * NUM_FIELDS + self.patches * 3 + 2 * self.tokens

    def sections(self, packed: Any) -> tuple[Any, Any, Any, Any]:
        """Views of the row table, patches, tokens and rows of tokens (numpy or jax arrays)."""
        ends = np.cumsum((self.rows * NUM_FIELDS, self.patches * 3, self.tokens, self.tokens))
        rows, patches, tokens, token_rows = (
            packed[start:end] for start, end in zip((0, *ends[:-1]), ends, strict=True)
        )
        return rows.reshape(-1, NUM_FIELDS), patches.reshape(-1, 3), tokens, token_rows


class BatchBuilder:
    """Writes packed buffers. Keeps each slot's sampling parameters, so that a step copies a row."""

    def __init__(self, num_slots: int, page_size: int, adapter_slots: int = 0) -> None:
        self._null_slot = num_slots
        self._no_adapter = adapter_slots
        self._page_size = page_size
        self._slots = np.zeros((num_slots + 1, NUM_FIELDS), np.int32)
        self._slots[:, RowField.SLOT] = np.arange(num_slots + 1)
        self._slots[:, RowField.ADAPTER] = adapter_slots
        self._floats = self._slots.view(np.float32)
        self._floats[:, RowField.TOP_P] = 1.0
        self._floats[:, RowField.REPETITION] = 1.0

    def admit(self, sequence: "Sequence", params: "SamplingParams") -> None:
        """Remembers the sampling parameters of the sequence that now owns `sequence.slot`."""
        ints, floats = self._slots[sequence.slot], self._floats[sequence.slot]
        ints[[RowField.TOP_K, RowField.KEY_0, RowField.KEY_1]] = np.array(
            [max(params.top_k, 0), *sequence.key], np.uint32
        ).view(np.int32)
        ints[RowField.BIASED] = params.needs_bias
        ints[RowField.MASKED] = sequence.constraint is not None
        adapter = sequence.adapter_slot
        ints[RowField.ADAPTER] = self._no_adapter if adapter < 0 else adapter
        floats[RowField.TEMPERATURE :] = (
            0.0 if params.greedy else params.temperature,
            params.top_p,
            params.min_p,
            params.presence_penalty,
            params.frequency_penalty,
            params.repetition_penalty,
        )

    def build(self, schedule: "Schedule", program: "Program") -> np.ndarray:
        """The packed buffer of `schedule`, padded to `program`. Page-table changes must fit it."""
        layout = Layout.of(program, self._page_size)
        packed = np.zeros(layout.size, np.int32)
        rows, patches, tokens, token_rows = layout.sections(packed)
        chunks = schedule.chunks
        used = len(chunks)
        counts = [chunk.count for chunk in chunks]
        starts = np.array([chunk.start for chunk in chunks], np.int32)
        rows[:used] = self._slots[[chunk.sequence.slot for chunk in chunks]]
        rows[used:] = self._slots[self._null_slot]
        rows[:used, RowField.START] = starts
        rows[:used, RowField.LENGTH] = starts + counts
        rows[:used, RowField.SAMPLES] = [chunk.samples for chunk in chunks]
        patches[:, 0] = self._null_slot + 1
        if schedule.new_pages:
            patches[: len(schedule.new_pages)] = schedule.new_pages
        if program.decode:
            rows[:used, RowField.TOKEN] = [_input_tokens(chunk)[0] for chunk in chunks]
        else:
            rows[:, RowField.QUERY_START] = schedule.num_tokens
            rows[:used, RowField.QUERY_START] = np.cumsum(counts) - counts
            flat = [token for chunk in chunks for token in _input_tokens(chunk)]
            tokens[: len(flat)] = flat
            token_rows[:] = layout.rows - 1
            token_rows[: len(flat)] = np.repeat(np.arange(used), counts)
        return packed


def _input_tokens(chunk: Any) -> list[int]:
    """Tokens of a chunk; -1 stands for the one that only the device knows yet."""
    known = chunk.sequence.tokens
    if chunk.start >= len(known):
        return [-1]
    return known[chunk.start : chunk.start + chunk.count]
