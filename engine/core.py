"""The loop: schedule, build, run, sample, emit. No user interface, no threads."""

import time
from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from ..errors import EngineClosedError
from . import token_masks
from .buckets import Variant
from .logprobs import LogprobReader
from .output_processor import OutputProcessor, Sink
from .request import FinishReason, Request, Sequence
from .schedule import Schedule
from .scheduler import Scheduler
from .step import StepOutput

if TYPE_CHECKING:
    from .runner import ModelRunner


class EngineCore:
    """Serves requests until none is left. One thread at a time may call it."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: "ModelRunner",
        reader: LogprobReader,
        outputs: OutputProcessor,
        vocab_size: int,
    ) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._reader = reader
        self._outputs = outputs
        self._vocab_size = vocab_size
        self._in_flight: deque[tuple[Schedule, StepOutput]] = deque()
        self._due = False
        """Whether the tokens of the oldest step in flight come before the next is dispatched."""
        self._requests: dict[str, Request] = {}
        self._error: BaseException | None = None
        self.num_steps = 0
        """Steps dispatched since the start."""

    @property
    def has_work(self) -> bool:
        """Whether `step` would do anything."""
        return bool(self._in_flight) or self._scheduler.has_work

    @property
    def num_waiting(self) -> int:
        """Sequences that are queued and do not run."""
        return self._scheduler.num_waiting

    def add(self, request: Request, sink: Sink) -> None:
        """Queues a request; `sink` gets its outputs. Raises what `Scheduler.add` raises."""
        self.check_alive()
        self.take(request)
        self._outputs.open(request, sink)

    def take(self, request: Request) -> None:
        """Queues a request whose outputs are being collected."""
        self._scheduler.add(request)
        self._requests[request.id] = request

    def withdraw(self, request: Request) -> None:
        """Gives up a request that has never run, for another to `take`."""
        self._scheduler.withdraw(request)
        del self._requests[request.id]

    def abort(self, request_id: str) -> bool:
        """Ends a request now and frees its pages. False if it is not known, or no longer."""
        request = self._requests.pop(request_id, None)
        if request is None:
            return False
        self._scheduler.abort(request)
        self._outputs.emit(request)
        return True

    def abort_all(self) -> None:
        """Aborts every request."""
        for request_id in list(self._requests):
            self.abort(request_id)

    def step(self) -> None:
        """Dispatches one step and handles the tokens of the one before, while the device works."""
        self._go_on(wait=True)

    def advance(self) -> bool:
        """What `step` does, as far as that goes without waiting for the device; False if it does
        not. Where it stops the device has a step that runs and one behind it, if there is work."""
        return self._go_on(wait=False)

    def recompute_all(self) -> None:
        """Reads what is in flight, then makes every running sequence start over from its tokens."""
        while self._in_flight:
            self._collect(*self._in_flight.popleft())
        self._due = False
        self._scheduler.preempt_all()

    def check_alive(self) -> None:
        """Raises EngineClosedError where it has died of an error."""
        if self._error is not None:
            raise EngineClosedError(
                f"the engine stopped after an error ({self._error!r}). Make a new one."
            ) from self._error

    def _go_on(self, *, wait: bool) -> bool:
        self.check_alive()
        try:
            dispatches = not self._due
            if dispatches:
                self._dispatch_next()
            collects = self._due and (wait or self._in_flight[0][1].tokens.is_ready())
            if collects:
                self._due = False
                self._collect(*self._in_flight.popleft())
            return dispatches or collects
        except BaseException as error:  # a second Ctrl-C, too, leaves host and device at odds
            self._error = error
            raise

    def _dispatch_next(self) -> None:
        schedule = self._scheduler.schedule()
        if schedule is not None:
            self._in_flight.append((schedule, self._dispatch(schedule)))
            self.num_steps += 1
        self._due = bool(self._in_flight) and (schedule is None or len(self._in_flight) > 1)

    def _dispatch(self, schedule: Schedule) -> StepOutput:
        for sequence in schedule.admitted:
            if sequence.request.scheduled_time is None:
                sequence.request.scheduled_time = time.monotonic()
            self._runner.admit(sequence, self._tables(sequence))
        for slot, adapter in schedule.loads:
            self._runner.write_adapter(slot, adapter)
        if schedule.encodes:
            self._runner.encode(schedule.encodes)
        variant, adapters = Variant.GREEDY, False
        masks: dict[int, np.ndarray] = {}
        for chunk in schedule.chunks:
            sequence, request = chunk.sequence, chunk.sequence.request
            variant = max(variant, request.variant)
            adapters = adapters or request.adapter is not None
            if request.dynamic_bias:
                self._refresh_bias(sequence, chunk.start + chunk.count)
            if sequence.constraint is not None and chunk.samples:
                masks[sequence.slot] = sequence.constraint.mask()
        if masks:
            self._runner.write_masks(masks)
        return self._runner.run(schedule, variant, adapters=adapters)

    def _tables(self, sequence: Sequence) -> tuple[np.ndarray, np.ndarray] | None:
        params = sequence.request.params
        if not (params.needs_counts or params.needs_bias):
            return None
        position = len(sequence.tokens)
        return (
            token_masks.counts_row(sequence, self._vocab_size),
            token_masks.bias_row(sequence, position, self._vocab_size),
        )

    def _refresh_bias(self, sequence: Sequence, position: int) -> None:
        if token_masks.changes_now(sequence, position):
            bias = token_masks.bias_row(sequence, position, self._vocab_size)
            self._runner.write_bias(sequence.slot, bias)

    def _collect(self, schedule: Schedule, output: StepOutput) -> None:
        """Waits for a step's tokens and hands them to their sequences."""
        self._runner.executor.wait(output.tokens)
        tokens = np.asarray(output.tokens).tolist()
        logprobs = self._reader.of_rows(schedule, output, tokens)
        for sequence, start, prompt in self._reader.of_prompts(schedule, output):
            if not sequence.request.finished:
                self._outputs.accept_prompt(sequence.request, start, prompt)
        touched: dict[Request, None] = {}
        for row, chunk in enumerate(schedule.chunks):
            sequence = chunk.sequence
            if not chunk.samples or sequence.finished:
                continue
            self._scheduler.on_token(sequence, tokens[row])
            ending = self._outputs.accept(sequence, tokens[row], row, logprobs)
            if sequence.constraint is not None and sequence.constraint.accept(tokens[row]):
                ending = ending or (FinishReason.STOP, None)
            if ending is not None:
                self._scheduler.finish(sequence, *ending)
            if ending is not None or sequence.request.streams:
                touched[sequence.request] = None
        for request in touched:
            if request.finished:
                del self._requests[request.id]
            if request.finished or request.streams:
                self._outputs.emit(request)
