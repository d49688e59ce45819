"""Runs schedules on the device: owns the weights, the device state and the compiled programs."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import PartitionSpec

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
from .device_state import RunnerConfig, new_features, new_state, new_tables, state_specs
from .encoders import runs
from .lowering import Lowering, compiler_options
from .mesh import made
from .programs import Programs
from .step import StepOutput

if TYPE_CHECKING:
    from .adapter_arrays import LoadedAdapter
    from .media import Medium
    from .model import ModelSpec
    from .request import Sequence
    from .scheduler import Schedule


class ModelRunner:
    """Turns a `Schedule` into a dispatched step. Only the two `_logprobs` methods wait for it."""

    def __init__(
        self, spec: "ModelSpec", config: RunnerConfig, program_cache: Path | None = None
    ) -> None:
        """Starts to compile what is needed first; `start` brings the weights, loaded meanwhile.

        Args:
            program_cache: a folder for traced programs, see `ProgramCache`.
        """
        self._spec = spec
        self._config = config
        self._params: dict[str, jax.Array] = {}
        self._adapters: dict[str, jax.Array] | None = None
        self._no_adapter = 0 if spec.adapters is None else spec.adapters.slots
        self._features: jax.Array | None = None
        self._builder = BatchBuilder(
            config.num_slots,
            config.page_size,
            self._no_adapter,
            config.media,
            config.feature_rows,
        )
        self.programs = Programs(
            Lowering(spec, config, program_cache),
            _planned(spec, config),
            options=compiler_options,
            first=2,
            ahead=config.compile_ahead,
            workers=max(1, min(16, (os.cpu_count() or 2) - 1)),
        )

    def start(self, params: dict[str, jax.Array]) -> None:
        """Takes the weights, allocates the device state and lets all programs be compiled."""
        self._params = params
        spec, config, every = self._spec, self._config, PartitionSpec()
        self._state = made(lambda: new_state(spec, config), state_specs(spec), spec.mesh)
        self._tables = made(lambda: new_tables(spec, config), every, spec.mesh)
        if self._spec.adapters is not None:
            adapters = self._spec.adapters
            self._adapters = made(adapters.new_arrays, adapters.specs, spec.mesh)
        self._features = made(lambda: new_features(spec, config), every, spec.mesh)
        self.programs.go_on()

    @property
    def params(self) -> dict[str, jax.Array]:
        return self._params

    def replace_params(self, params: dict[str, jax.Array]) -> None:
        """Takes new weights of the same shapes; steps dispatched before keep the old ones."""
        self._params = params

    def admit(self, sequence: "Sequence", tables: tuple[np.ndarray, np.ndarray] | None) -> None:
        """Prepares the slot a sequence got. `tables` are its counts and bias, if it has any."""
        self._builder.admit(sequence, sequence.request.params)
        if tables is not None:
            write = self.programs.exactly(Auxiliary.WRITE_TABLES)
            self._tables = write(self._tables, np.int32(sequence.slot), *tables)

    def write_bias(self, slot: int, bias: np.ndarray) -> None:
        """Replaces the bias [V] of a slot from the next step on."""
        write = self.programs.exactly(Auxiliary.WRITE_BIAS)
        self._tables = write(self._tables, np.int32(slot), bias)

    def write_masks(self, masks: dict[int, np.ndarray]) -> None:
        """Replaces the masks [W] of slots from the next step on."""
        write, rows = self.programs.exactly(Auxiliary.WRITE_MASKS), list(masks.items())
        for start in range(0, len(rows), AUXILIARY_MASKS):
            part = rows[start : start + AUXILIARY_MASKS]
            padding = [(self._config.num_slots + 1, part[0][1])] * (AUXILIARY_MASKS - len(part))
            slots, words = zip(*part, *padding, strict=True)
            self._tables = write(self._tables, np.array(slots, np.int32), np.stack(words))

    def write_adapter(self, slot: int, adapter: "LoadedAdapter") -> None:
        """Puts an adapter in a slot from the next step on."""
        write = self.programs.exactly(Auxiliary.WRITE_ADAPTER)
        self._adapters = write(self._adapters, np.int32(slot), adapter.packed)

    def encode(self, media: "list[tuple[Medium, np.ndarray]]") -> None:
        """Writes the features of media to their rows, ahead of the next step."""
        if (spec := self._spec.media) is None or not media:
            return
        for name, encoder in spec.encoders.items():
            sizes = [one.units for one in self._config.encodings if one.kind == name]
            own = [one for one in media if spec.kinds[one[0].kind].encoded_as == name]
            for run in runs(encoder, sizes, own):
                compiled = self.programs.exactly(Encoding(name, run.units))
                rows = run.rows(self._config.feature_rows)
                self._features = compiled(self._params, self._features, run.inputs, rows)

    def run(self, schedule: "Schedule", variant: Variant, *, adapters: bool = False) -> StepOutput:
        """Dispatches one step and returns at once; the tokens are on their way to the host."""
        buckets, kind = self._config.buckets, {"variant": variant, "adapters": adapters}
        if schedule.decode_only and not (self._config.media and _shows_media(schedule)):
            needed = buckets.decode(len(schedule.chunks), **kind)
        else:
            needed = buckets.mixed(schedule.num_tokens, **kind)
        program, compiled = self.programs.get(needed)
        self._write_overflow(schedule, program)
        packed = self._builder.build(schedule, program)
        tables = self._tables if program.variant >= Variant.PENALIZED else None
        used = self._adapters if program.adapters else None
        features = None if program.decode else self._features
        self._state, tables, output = compiled(
            self._params, used, features, self._state, tables, packed
        )
        if tables is not None:
            self._tables = tables
        output.tokens.copy_to_host_async()
        return output

    def top_logprobs(
        self, hidden: np.ndarray, adapters: list[int], targets: np.ndarray
    ) -> sampler.LogprobResult:
        """Log-probabilities of `targets` [N] and of the likeliest tokens, from `hidden` [N, E].

        Waits for the device. Numpy arrays of N rows.

        Args:
            adapters: slot of each row's adapter, -1 for none.
        """
        compiled = self.programs.exactly(Auxiliary.TOP_LOGPROBS)
        parts = [
            jax.tree.map(
                lambda x, n=n: np.asarray(x)[:n],
                compiled(self._params, self._adapters, part, slots, target),
            )
            for n, part, slots, target in _padded_chunks(hidden, self._slots(adapters), targets)
        ]
        return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)

    def all_logprobs(self, hidden: np.ndarray, adapters: list[int]) -> Iterator[np.ndarray]:
        """Log-probabilities of the whole vocabulary, [V] a row of `hidden` [N, E]. Waits.

        Args:
            adapters: slot of each row's adapter, -1 for none.
        """
        compiled = self.programs.exactly(Auxiliary.ALL_LOGPROBS)
        for n, part, slots in _padded_chunks(hidden, self._slots(adapters)):
            yield from np.asarray(compiled(self._params, self._adapters, part, slots))[:n]

    def _slots(self, adapters: list[int]) -> np.ndarray:
        slots = np.array(adapters, np.int32)
        return np.where(slots < 0, np.int32(self._no_adapter), slots)

    def close(self) -> None:
        """Stops compiling and gives the device memory back."""
        self.programs.close()
        for leaf in jax.tree.leaves(
            (
                self._params,
                self._adapters,
                self._features,
                vars(self).get("_state"),
                vars(self).get("_tables"),
            )
        ):
            if not leaf.is_deleted():
                leaf.delete()
        self._params, self._adapters, self._features = {}, None, None

    def _write_overflow(self, schedule: "Schedule", program: Program) -> None:
        """Leaves in `schedule.new_pages` what the step's buffer holds and writes the rest now."""
        room = self._config.layout(program).patches
        rest = schedule.new_pages[room:]
        if not rest:
            return
        schedule.new_pages = schedule.new_pages[:room]
        write = self.programs.exactly(Auxiliary.PATCH_PAGES)
        for start in range(0, len(rest), AUXILIARY_PATCHES):
            part = rest[start : start + AUXILIARY_PATCHES]
            patches = np.full((AUXILIARY_PATCHES, 3), self._config.num_slots + 1, np.int32)
            patches[: len(part)] = part
            self._state = write(self._state, patches)


def _planned(spec: "ModelSpec", config: RunnerConfig) -> list[Program | Auxiliary | Encoding]:
    """All programs, those that a fresh engine is likely to need first in front."""
    steps = config.buckets.programs()
    needless = {Auxiliary.WRITE_ADAPTER} if spec.adapters is None else set()
    return [*steps[:2], *config.encodings, *steps[2:], *(a for a in Auxiliary if a not in needless)]


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
