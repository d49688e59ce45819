"""Decides which tokens of which sequences the next step computes. Plain Python, no jax.

Continuous batching with chunked prefill and preemption by recompute over paged KV memory, as in Yu
et al., "Orca" (OSDI 2022), Agrawal et al., "Sarathi-Serve" (OSDI 2024) and Kwon et al.,
"PagedAttention" (SOSP 2023).

A step is scheduled while the one before it is still on the device. So `schedule` applies what the
step will do to `computed` and `pending` at once, and `on_token` tells each sampled token later.
Pages that are freed meanwhile may be handed out at once, because the device runs steps in order.
"""

import heapq
from collections.abc import Iterator

from ..errors import MemoryBudgetError, OptionError, PromptError
from .adapter_slots import AdapterSlots
from .feature_pool import FeaturePool
from .held_features import HeldFeatures
from .page_pool import PagePool
from .prefix_cache import PrefixCache
from .request import FinishReason, Request, Sequence
from .schedule import Chunk, Schedule
from .scheduler_config import SchedulerConfig
from .waiting_queue import WaitingQueue

_RESERVED_PAGES = 100
"""One page in so many stays free for growth when a sequence is admitted, or one a running row."""


class Scheduler:
    """Owns the waiting and the running sequences and their pages."""

    def __init__(
        self,
        config: SchedulerConfig,
        pool: PagePool,
        slots: AdapterSlots | None = None,
        features: FeaturePool | None = None,
    ) -> None:
        """`slots` are those of adapters, `features` of media; None where no request has any."""
        self._config = config
        self._pool = pool
        self._adapter_slots = AdapterSlots(0) if slots is None else slots
        self._held = HeldFeatures(FeaturePool(0) if features is None else features)
        self._page_size = pool.page_size
        self._budget = config.max_num_batched_tokens
        self._prefixes = PrefixCache(pool, config.enable_prefix_caching)
        self._order = _by_priority if config.policy == "priority" else _by_arrival
        self._waiting = WaitingQueue(self._order)
        self._running: dict[Sequence, None] = {}  # in order of admission
        self._free_slots = list(range(min(config.max_num_seqs, self._budget)))  # a heap
        self._num_slots = len(self._free_slots)
        self._left_over = False
        self.num_preemptions = 0
        """Preemptions since the start."""

    @property
    def has_work(self) -> bool:
        return bool(self._running or self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def load(self) -> int:
        """Tokens that it has pages for, and prompt tokens that wait."""
        held = self._pool.num_pages - 1 - self._pool.num_free
        return held * self._page_size + self._waiting.prompt_tokens

    @property
    def has_left_over(self) -> bool:
        """Whether sequences wait that there was no room for in the last step."""
        return self._left_over and bool(self._waiting)

    @property
    def num_adapter_slots(self) -> int:
        """Adapters that can be at work at once."""
        return self._adapter_slots.count

    def prefix_hashes(self, request: Request) -> Iterator[bytes]:
        """Names of the pages that could hold the beginning of a prompt, computed as they are asked
        for; none without the prefix cache."""
        if not self._prefixes.enabled:
            return iter(())
        return self._prefixes.chain(request.sequences[0])

    def room(self) -> tuple[int, int]:
        """Slots and pages for sequences to be admitted at once; none where others wait."""
        if self._waiting:
            return 0, 0
        return len(self._free_slots), self._pool.num_free - self._reserve()

    def has_slot_for(self, request: Request) -> bool:
        """Whether the adapter of a request, if it has one, could be at work now."""
        adapter = request.adapter
        return adapter is None or self._adapter_slots.has_room(adapter.digest)

    def never_run(self) -> Request | None:
        """The first request in order of which nothing has run yet."""
        return next((s.request for s in self._waiting if _never_ran(s.request)), None)

    def withdraw(self, request: Request) -> None:
        """Forgets a request that has never run, as if it had not been added."""
        for sequence in request.sequences:
            self._waiting.remove(sequence)

    def add(self, request: Request) -> None:
        """Queues the sequences of `request`; its `arrival` must be its own.

        Raises PromptError for a prompt that is empty or leaves no room within its `max_len`,
        MemoryBudgetError for a sequence that the whole pool could not hold, or media that the room
        for features could not, and OptionError for an adapter where there are no slots for any.
        Then nothing is queued.
        """
        if request.adapter is not None and not self._adapter_slots.count:
            raise OptionError(
                f"request {request.id} has an adapter, but this engine takes none. Make the engine "
                "with enable_lora=True, or leave the adapter out."
            )
        self._held.check(request)
        for sequence in request.sequences:
            self._check_fits(sequence)
        for sequence in request.sequences:
            self._waiting.add(sequence)

    def abort(self, request: Request) -> None:
        """Finishes what is unfinished of a request that was added; its pages are free at once."""
        for sequence in request.sequences:
            self.finish(sequence, FinishReason.ABORT)

    def finish(
        self, sequence: Sequence, reason: FinishReason, stop_reason: int | str | None = None
    ) -> None:
        """Ends a sequence and frees its pages and its slot; one that has ended is left alone."""
        if sequence.finish_reason is not None:
            return
        sequence.finish_reason = reason
        sequence.stop_reason = stop_reason
        if sequence in self._running:
            self._release(sequence)
        else:
            self._waiting.remove(sequence)

    def preempt_all(self) -> None:
        """Makes every running sequence start over from its tokens, once those pending are known."""
        for sequence in list(self._running):
            self._preempt(sequence)

    def on_token(self, sequence: Sequence, token: int) -> None:
        """Appends the token a step sampled, now that it is known. Ignored once it has ended."""
        if sequence.finish_reason is not None:
            return
        tokens = sequence.tokens
        tokens.append(token)
        sequence.pending -= 1
        if len(tokens) % self._page_size == 0:
            self._prefixes.register(sequence)

    def schedule(self) -> Schedule | None:
        """The next step, its effects already applied; None where nothing can run.

        None while there is work means that everything waits for tokens of steps in flight.
        """
        schedule = Schedule()
        self._adapter_slots.start_step()
        self._held.start_step()
        self._continue_running(schedule)
        if self._waiting and self._free_slots and not schedule.preempted:
            self._admit_waiting(schedule)
        self._left_over = bool(self._waiting)
        schedule.encodes = self._held.take_new()
        chunks = schedule.chunks
        if not chunks:
            return None
        # Only the budget cuts a prompt short, so none but the last chunk may fail to sample.
        schedule.decode_only = schedule.num_tokens == len(chunks) and chunks[-1].samples
        return schedule

    def check_integrity(self) -> None:
        """Raises AssertionError where slots, pages or queues contradict each other. Slow."""
        self._pool.check_integrity([s.pages for s in self._running])
        slots = sorted([*self._free_slots, *(s.slot for s in self._running)])
        _check(slots == list(range(self._num_slots)), "slots lost or owned twice", slots)
        self._adapter_slots.check_integrity(
            [(s.adapter_slot, s.request.adapter_digest) for s in self._running if s.request.adapter]
        )
        self._held.check_integrity(self._running)
        self._waiting.check_integrity()
        for s in self._running:
            held = self._pages_for(s.computed)
            _check(s.finish_reason is None, "a finished sequence runs", s)
            _check(len(s.pages) == held >= s.registered, "pages do not match tokens computed", s)
            _check(s.computed < s.length <= s.max_len, "computed beyond its tokens", s)
        for s in self._waiting:
            _check(s.finish_reason is None, "a finished sequence waits", s)
            _check(not s.pages and s.computed == 0, "a waiting sequence holds pages", s)
            _check(s.slot < 0, "a waiting sequence owns a slot", s)
            _check(not s.feature_rows, "a waiting sequence holds features", s)

    # Running sequences

    def _continue_running(self, schedule: Schedule) -> None:
        growing, filled, prefilling = self._add_decode_rows(schedule)
        needed = len(growing)
        for sequence in prefilling:
            needed += self._add_prompt_chunk(schedule, sequence)
        self._make_room(schedule, needed)
        self._grow(schedule, growing + prefilling)
        for sequence in filled + prefilling:
            self._prefixes.register(sequence)

    def _add_decode_rows(
        self, schedule: Schedule
    ) -> tuple[list[Sequence], list[Sequence], list[Sequence]]:
        """A row for each sequence one token short of its length; the loop that every step pays for.

        Returns those that enter a new page, those that fill a page of known tokens, and those with
        more than one token to compute, which got no row.
        """
        growing: list[Sequence] = []
        filled: list[Sequence] = []
        prefilling: list[Sequence] = []
        page_size = self._page_size
        last = page_size - 1
        append = schedule.chunks.append
        for sequence in self._running:
            start = sequence.computed
            pending = sequence.pending
            length = len(sequence.tokens) + pending
            if length - start != 1:
                prefilling.append(sequence)
                continue
            if length >= sequence.max_len or (pending and sequence.waits_for_token):
                continue
            offset = start % page_size
            if offset == 0:
                growing.append(sequence)
            if offset == last and not pending:
                filled.append(sequence)
            sequence.computed = length
            sequence.pending = pending + 1
            append(Chunk(sequence, start, 1, True))
        schedule.num_tokens = len(schedule.chunks)
        return growing, filled, prefilling

    def _add_prompt_chunk(self, schedule: Schedule, sequence: Sequence) -> int:
        """Goes on with a prompt as far as the budget allows; returns the pages that takes."""
        start = sequence.computed
        count = min(len(sequence.tokens) - start, self._budget - schedule.num_tokens)
        if count == 0:
            return 0
        self._add_chunk(schedule, sequence, start, count)
        return self._pages_missing(sequence)

    def _add_chunk(self, schedule: Schedule, sequence: Sequence, start: int, count: int) -> None:
        end = start + count
        samples = end == len(sequence.tokens)
        sequence.computed = end
        sequence.pending = int(samples)
        schedule.num_tokens += count
        schedule.chunks.append(Chunk(sequence, start, count, samples))
        self._held.scheduled(sequence)

    def _make_room(self, schedule: Schedule, needed: int) -> None:
        """Preempts from the last in order until the pool has the pages that the chunks need.

        Ends at the latest when one sequence is left: `add` checked that the pool can hold it.
        """
        while needed > self._pool.num_free:
            victim = max(self._running, key=self._order)
            needed -= self._pages_missing(victim)
            self._take_out(schedule, victim)
            self._preempt(victim)
            schedule.preempted.append(victim)

    def _take_out(self, schedule: Schedule, sequence: Sequence) -> None:
        """Takes its chunk, if it has one, out of the step again."""
        for index, chunk in enumerate(schedule.chunks):
            if chunk.sequence is sequence:
                del schedule.chunks[index]
                schedule.num_tokens -= chunk.count
                sequence.pending -= chunk.samples
                return

    def _preempt(self, sequence: Sequence) -> None:
        self._release(sequence)
        sequence.computed = 0
        sequence.preemptions += 1
        self.num_preemptions += 1
        self._waiting.add(sequence)

    def _grow(self, schedule: Schedule, sequences: list[Sequence]) -> None:
        """Gives sequences the pages of their computed tokens; the pool must have enough."""
        allocated = self._pool.allocate(sum(map(self._pages_missing, sequences)))
        if allocated is None:
            raise AssertionError(f"only {self._pool.num_free} pages are free for {sequences}")
        new, page_size = iter(allocated), self._page_size
        for sequence in sequences:
            pages, slot = sequence.pages, sequence.slot
            for index in range(len(pages), -(-sequence.computed // page_size)):
                page = next(new)
                pages.append(page)
                schedule.new_pages.append((slot, index, page))

    # Waiting sequences

    def _admit_waiting(self, schedule: Schedule) -> None:
        """Admits in order until one does not fit.

        Passed over are those that a token is due for, and those whose adapter finds no slot.
        """
        blocked: set[str] = set()
        for sequence in self._waiting.walk(blocked):
            if not self._free_slots:
                break
            if sequence.pending:
                continue
            if schedule.num_tokens >= self._budget:
                break
            adapter = sequence.request.adapter
            if adapter is not None and not self._adapter_slots.has_room(adapter.digest):
                blocked.add(adapter.digest)
            elif not self._admit(schedule, sequence):
                break
        for sequence in schedule.admitted:
            self._waiting.remove(sequence)
        schedule.loads = self._adapter_slots.take_loads()

    def _admit(self, schedule: Schedule, sequence: Sequence) -> bool:
        """Starts a sequence behind what the prefix cache has of it, if there are pages enough.

        Enough is room for its first chunk, or for all its tokens where it was preempted before, so
        that it does not come and go; and some pages must stay free for those that run.
        """
        pool = self._pool
        reserve = self._reserve()
        if pool.num_free <= reserve:  # spares a blocked prompt the search
            return False
        hits = self._prefixes.find(sequence)
        start = len(hits) * self._page_size
        known = len(sequence.tokens)
        count = min(known - start, self._budget - schedule.num_tokens)
        room_for = known if sequence.preemptions else start + count
        pool.acquire(hits)
        lacks_pages = self._pages_for(room_for) - len(hits) + reserve > pool.num_free
        if lacks_pages or not self._held.hold(sequence, start):
            self._prefixes.release(hits)
            return False
        self._start(schedule, sequence, hits)
        self._add_chunk(schedule, sequence, start, count)
        self._grow(schedule, [sequence])
        self._prefixes.register(sequence)
        return True

    def _reserve(self) -> int:
        """Pages that an admission must leave free: room to grow for those that run."""
        running = len(self._running)
        return max(self._pool.num_pages // _RESERVED_PAGES, running) if running else 0

    def _start(self, schedule: Schedule, sequence: Sequence, hits: list[int]) -> None:
        """Gives slots and the cached pages to a sequence that leaves the queue."""
        if sequence.request.adapter is not None:
            sequence.adapter_slot = self._adapter_slots.acquire(sequence.request.adapter)
        sequence.slot = slot = heapq.heappop(self._free_slots)
        sequence.pages = hits
        sequence.registered = len(hits)
        self._running[sequence] = None
        schedule.admitted.append(sequence)
        schedule.new_pages.extend((slot, index, page) for index, page in enumerate(hits))
        if not sequence.preemptions:
            sequence.cached = len(hits) * self._page_size
            self._pool.queried_tokens += sequence.prompt_len
            self._pool.hit_tokens += sequence.cached

    # Pages

    def _release(self, sequence: Sequence) -> None:
        del self._running[sequence]
        heapq.heappush(self._free_slots, sequence.slot)
        sequence.slot = -1
        if sequence.request.adapter is not None:
            self._adapter_slots.release(sequence.adapter_slot)
        self._prefixes.release(sequence.pages)
        sequence.pages = []
        self._held.release(sequence)

    def _pages_for(self, tokens: int) -> int:
        return -(-tokens // self._page_size)

    def _pages_missing(self, sequence: Sequence) -> int:
        return -(-sequence.computed // self._page_size) - len(sequence.pages)

    def _check_fits(self, sequence: Sequence) -> None:
        known, max_len, limit = len(sequence.tokens), sequence.max_len, self._config.max_model_len
        if not 0 < known < max_len <= limit:
            raise PromptError(
                f"a prompt of {known} tokens with a limit of {max_len} tokens in all cannot be "
                f"served: it needs at least 1 token, room for 1 more, and at most "
                f"max_model_len={limit} in all. Shorten the prompt or lower max_tokens."
            )
        needed, usable = self._pages_for(max_len - 1), self._pool.num_pages - 1
        if needed > usable:
            raise MemoryBudgetError(
                f"a sequence of up to {max_len} tokens needs {needed} KV pages of "
                f"{self._page_size} tokens; the pool has {usable}. Lower max_tokens, shorten "
                "the prompt, or give the pool more memory (gpu_memory_utilization or "
                "kv_cache_memory_bytes)."
            )


def _never_ran(request: Request) -> bool:
    """Whether all of its sequences wait, for the first time."""
    return all(s.slot < 0 and not s.preemptions and not s.finished for s in request.sequences)


def _by_arrival(sequence: Sequence) -> tuple[int, ...]:
    return sequence.request.arrival, sequence.index


def _by_priority(sequence: Sequence) -> tuple[int, ...]:
    return sequence.request.priority, sequence.request.arrival, sequence.index


def _check(condition: bool, what: str, found: object) -> None:
    if not condition:
        raise AssertionError(f"{what}: {found}")
