"""One step's batch as one packed int32 buffer: written here by the host, unpacked in the step.

Layout, in this order: `rows` [R, len(RowField)], `patches` [N, 3] and, in mixed programs, `tokens`
[T], the row of each token [T], and for models that see `media` [1 or 4, T]. Floats are stored by
their bits.
"""

import enum
import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .media import within

if TYPE_CHECKING:
    from .buckets import Program
    from .request import Sequence
    from .sampling_params import SamplingParams
    from .schedule import Chunk, Schedule


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
    ROTARY = 12
    """What a decode row stands beyond its position, for models that rotate by three."""
    TEMPERATURE = 13
    """This column and those after it hold float32 bits."""
    TOP_P = 14
    MIN_P = 15
    PRESENCE = 16
    FREQUENCY = 17
    REPETITION = 18


NUM_FIELDS = len(RowField)


class Sections(NamedTuple):
    """The parts of a packed buffer."""

    rows: Any
    """[R, len(RowField)]"""
    patches: Any
    """[N, 3]: slot, index, page."""
    tokens: Any
    """[T]"""
    token_rows: Any
    """[T]"""
    media: Any
    """[C, T]: the row of the features that stands for each token, and where it stands along time,
    height and width."""


class Layout(NamedTuple):
    """Sizes of the sections of a program's packed buffer."""

    rows: int
    patches: int
    tokens: int
    """0 in decode programs, whose rows carry their token."""
    media: int = 0
    """Columns of `media`: 1 for models that see, 4 for those that rotate by three positions too."""

    @classmethod
    def of(cls, program: "Program", page_size: int, media: int = 0) -> "Layout":
        """A decode row can enter at most one new page; a mixed step one per page of tokens more."""
        if program.decode:
            return cls(program.rows, program.rows, 0, media)
        patches = program.rows + -(-program.tokens // page_size)
        return cls(program.rows, patches, program.tokens, media)

    @property
    def size(self) -> int:
        return self.rows * NUM_FIELDS + self.patches * 3 + (2 + self.media) * self.tokens

    def sections(self, packed: Any) -> Sections:
        """Views of a buffer, a numpy or jax array."""
        fields, patches, tokens = self.rows * NUM_FIELDS, self.patches * 3, self.tokens
        ends = itertools.accumulate(
            (fields, patches, tokens, tokens, self.media * tokens), initial=0
        )
        parts = [packed[start:end] for start, end in itertools.pairwise(ends)]
        return Sections(
            parts[0].reshape(-1, NUM_FIELDS),
            parts[1].reshape(-1, 3),
            parts[2],
            parts[3],
            parts[4].reshape(self.media, tokens),
        )


class BatchBuilder:
    """Writes packed buffers. Keeps each slot's sampling parameters, so that a step copies a row."""

    def __init__(
        self,
        num_slots: int,
        page_size: int,
        adapter_slots: int = 0,
        media: int = 0,
        feature_rows: int = 0,
    ) -> None:
        """`media` as in `Layout`; `feature_rows` is how many rows features have on the device."""
        self._media = media
        self._no_feature = feature_rows
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
        ints[RowField.ROTARY] = sequence.request.rotary_delta
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
        layout = Layout.of(program, self._page_size, self._media)
        packed = np.zeros(layout.size, np.int32)
        rows, patches, tokens, token_rows, media = layout.sections(packed)
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
            if self._media:
                self._write_media(media, chunks)
        return packed

    def _write_media(self, media: np.ndarray, chunks: "list[Chunk]") -> None:
        media[0] = self._no_feature
        first = 0
        for chunk in chunks:
            columns = media[:, first : first + chunk.count]
            _write_features(columns[0], chunk)
            if self._media > 1:
                _write_positions(columns[1:], chunk)
            first += chunk.count


def _write_features(index: np.ndarray, chunk: "Chunk") -> None:
    """The row of the feature that stands for each token of a chunk, where one does."""
    sequence, start = chunk.sequence, chunk.start
    if not sequence.feature_rows:
        return
    for i, medium in within(sequence.request.media, start, start + chunk.count):
        begin, end = max(medium.start, start), min(medium.end, start + chunk.count)
        rows = sequence.feature_rows[i]
        index[begin - start : end - start] = rows[begin - medium.start : end - medium.start]


def _write_positions(columns: np.ndarray, chunk: "Chunk") -> None:
    """Where the tokens of a chunk stand along time, height and width."""
    request, start = chunk.sequence.request, chunk.start
    columns[:] = np.arange(start, start + chunk.count) + request.rotary_delta
    if request.rotary is not None:
        known = request.rotary[:, start : start + chunk.count]
        columns[:, : known.shape[1]] = known


def _input_tokens(chunk: "Chunk") -> list[int]:
    """Tokens of a chunk; -1 stands for the one that only the device knows yet."""
    known = chunk.sequence.tokens
    if chunk.start >= len(known):
        return [-1]
    return known[chunk.start : chunk.start + chunk.count]
