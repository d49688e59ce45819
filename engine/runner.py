"""Runs schedules on the device: what the host knows of a step becomes arrays for a program."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from ..errors import EngineClosedError
from . import sampler
from .batch import BatchBuilder
from .buckets import (
    AUXILIARY_MASKS,
    AUXILIARY_PATCHES,
    AUXILIARY_TOKENS,
    Auxiliary,
    Encoding,
    Program,
    Variant,
)
from .device_state import RunnerConfig
from .encoders import runs
from .executor import Executor
from .step import StepOutput

if TYPE_CHECKING:
    from .adapter_arrays import LoadedAdapter
    from .media import Medium
    from .model import ModelSpec
    from .request import Sequence
    from .schedule import Schedule


class ModelRunner:
    """Turns a `Schedule` into a dispatched step. Only `close` and both `_logprobs` wait for it."""

    def __init__(self, spec: "ModelSpec", config: RunnerConfig, executor: Executor) -> None:
        self._spec = spec
        self._config = config
        self.executor = executor
        self._tokens: jax.Array | None = None
        """Of the last step."""
        self._no_adapter = 0 if spec.adapters is None else spec.adapters.slots
        self._builder = BatchBuilder(
            config.num_slots,
            config.page_size,
            self._no_adapter,
            config.media,
            config.feature_rows,
        )

    def admit(self, sequence: "Sequence", tables: tuple[np.ndarray, np.ndarray] | None) -> None:
        """Prepares the slot a sequence got. `tables` are its counts and bias, if it has any."""
        self._builder.admit(sequence, sequence.request.params)
        if tables is not None:
            self.executor.execute(Auxiliary.WRITE_TABLES, np.int32(sequence.slot), *tables)

    def write_bias(self, slot: int, bias: np.ndarray) -> None:
        """Replaces the bias [V] of a slot from the next step on."""
        self.executor.execute(Auxiliary.WRITE_BIAS, np.int32(slot), bias)

    def write_masks(self, masks: dict[int, np.ndarray]) -> None:
        """Replaces the masks [W] of slots from the next step on."""
        rows = list(masks.items())
        for start in range(0, len(rows), AUXILIARY_MASKS):
            part = rows[start : start + AUXILIARY_MASKS]
            padding = [(self._config.num_slots + 1, part[0][1])] * (AUXILIARY_MASKS - len(part))
            slots, words = zip(*part, *padding, strict=True)
            arrays = np.array(slots, np.int32), np.stack(words)
            self.executor.execute(Auxiliary.WRITE_MASKS, *arrays)

    def write_adapter(self, slot: int, adapter: "LoadedAdapter") -> None:
        """Puts an adapter in a slot from the next step on."""
        self.executor.execute(Auxiliary.WRITE_ADAPTER, np.int32(slot), adapter.packed)

    def encode(self, media: "list[tuple[Medium, np.ndarray]]") -> None:
        """Writes the features of media to their rows, ahead of the next step."""
        if (spec := self._spec.media) is None or not media:
            return
        for name, encoder in spec.encoders.items():
            sizes = [one.units for one in self._config.encodings if one.kind == name]
            own = [one for one in media if spec.kinds[one[0].kind].encoded_as == name]
            for run in runs(encoder, sizes, own):
                rows = run.rows(self._config.feature_rows)
                self.executor.execute(Encoding(name, run.units), run.inputs, rows)

    def run(self, schedule: "Schedule", variant: Variant, *, adapters: bool = False) -> StepOutput:
        """Dispatches one step and returns at once; the tokens are on their way to the host."""
        buckets, kind = self._config.buckets, {"variant": variant, "adapters": adapters}
        if schedule.decode_only and not (self._config.media and _shows_media(schedule)):
            needed = buckets.decode(len(schedule.chunks), **kind)
        else:
            needed = buckets.mixed(schedule.num_tokens, **kind)
        program, _ = self.executor.programs.get(needed)
        self._write_overflow(schedule, program)
        output = self.executor.execute(program, self._builder.build(schedule, program))
        output.tokens.copy_to_host_async()
        self._tokens = output.tokens
        return output

    def close(self) -> None:
        """Waits for the last step, and gives the device memory back.

        A process that ended while tokens are on their way would be aborted: JAX asks for Python's
        lock when they arrive.
        """
        tokens, self._tokens = self._tokens, None
        with contextlib.suppress(EngineClosedError, jax.errors.JaxRuntimeError):
            if tokens is not None:
                self.executor.wait(tokens)
                np.asarray(tokens)
        self.executor.close()

    def top_logprobs(
        self, hidden: np.ndarray, adapters: list[int], targets: np.ndarray
    ) -> sampler.LogprobResult:
        """Log-probabilities of `targets` [N] and of the likeliest tokens, from `hidden` [N, E].

        Waits for the device. Numpy arrays of N rows.

        Args:
            adapters: slot of each row's adapter, -1 for none.
        """
        parts = [
            jax.tree.map(
                lambda x, n=n: np.asarray(x)[:n],
                self.executor.execute(Auxiliary.TOP_LOGPROBS, part, slots, target),
            )
            for n, part, slots, target in _padded_chunks(hidden, self._slots(adapters), targets)
        ]
        return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)

    def all_logprobs(self, hidden: np.ndarray, adapters: list[int]) -> Iterator[np.ndarray]:
        """Log-probabilities of the whole vocabulary, [V] a row of `hidden` [N, E]. Waits.

        Args:
            adapters: slot of each row's adapter, -1 for none.
        """
        for n, part, slots in _padded_chunks(hidden, self._slots(adapters)):
            found = self.executor.execute(Auxiliary.ALL_LOGPROBS, part, slots)
            yield from np.asarray(found)[:n]

    def _slots(self, adapters: list[int]) -> np.ndarray:
        slots = np.array(adapters, np.int32)
        return np.where(slots < 0, np.int32(self._no_adapter), slots)

    def _write_overflow(self, schedule: "Schedule", program: Program) -> None:
        """Leaves in `schedule.new_pages` what the step's buffer holds and writes the rest now."""
        room = self._config.layout(program).patches
        rest = schedule.new_pages[room:]
        if not rest:
            return
        schedule.new_pages = schedule.new_pages[:room]
        for start in range(0, len(rest), AUXILIARY_PATCHES):
            part = rest[start : start + AUXILIARY_PATCHES]
            patches = np.full((AUXILIARY_PATCHES, 3), self._config.num_slots + 1, np.int32)
            patches[: len(part)] = part
            self.executor.execute(Auxiliary.PATCH_PAGES, patches)


def _shows_media(schedule: "Schedule") -> bool:
    """Whether a token of the step may be a placeholder, or stand where its index does not say."""
    return any(chunk.start < chunk.sequence.request.media_end for chunk in schedule.chunks)


def _padded_chunks(hidden: np.ndarray, *columns: np.ndarray) -> Iterator[tuple[Any, ...]]:
    """How many rows, then they and their columns, int32, padded to AUXILIARY_TOKENS."""
    for start in range(0, len(hidden), AUXILIARY_TOKENS):
        part = hidden[start : start + AUXILIARY_TOKENS]
        missing = AUXILIARY_TOKENS - len(part)
        rows = slice(start, start + AUXILIARY_TOKENS)
        padded = [np.pad(column[rows].astype(np.int32), (0, missing)) for column in columns]
        yield len(part), np.pad(part, ((0, missing), (0, 0))), *padded
