"""A request and its sequences: the state the scheduler works on. Plain Python, no jax."""

import dataclasses
import enum
from typing import TYPE_CHECKING

import numpy as np

from .buckets import Variant
from .grammar import Constraint
from .media import Medium
from .sampling_params import RequestOutputKind, SamplingParams

if TYPE_CHECKING:
    from .adapter_arrays import LoadedAdapter


class FinishReason(enum.StrEnum):
    """Why a sequence ended, by the names of the OpenAI API."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


@dataclasses.dataclass(eq=False, slots=True)
class Sequence:
    """One line of tokens, prompt and output: the unit that is scheduled. Compared by identity."""

    request: "Request"
    index: int
    """Which of the request's `n` outputs this is."""
    tokens: list[int]
    """Prompt and output tokens the host knows."""
    prompt_len: int
    max_len: int
    """Length, in tokens, at which it ends for length."""
    key: tuple[int, int] = (0, 0)
    """Two 32-bit words: the random key of this sequence."""
    computed: int = 0
    """Tokens whose K and V are in the pool once all dispatched steps are done."""
    pending: int = 0
    """Tokens sampled on the device that the host has not read yet: 0 or 1 when a step is scheduled,
    2 from then until the token of the step before is read."""
    cached: int = 0
    """Prompt tokens found in the prefix cache when it was first admitted."""
    slot: int = -1
    """Row of the device tables it owns while running; -1 while it waits."""
    adapter_slot: int = -1
    """Where its adapter lies on the device; -1 without one. Its own only while it runs, but kept
    when it loses its pages: what a step in flight computes of it still goes by that slot."""
    pages: list[int] = dataclasses.field(default_factory=list)
    feature_rows: list[np.ndarray] = dataclasses.field(default_factory=list)
    """Where the features of each of the request's media lie; empty once it needs them no more."""
    hashes: list[bytes] = dataclasses.field(default_factory=list)
    """`PagePool.root`, then the chained hash of each full page of `tokens`; extended lazily."""
    registered: int = 0
    """Leading pages whose hash the page pool was told."""
    preemptions: int = 0
    """Times it lost its pages and had to start again."""
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    waits_for_token: bool = False
    """Its next mask depends on its last token: it sits out a step while one is pending."""
    constraint: Constraint | None = None
    """Where it stands in its grammar, by the tokens the host knows; None without one."""

    @property
    def length(self) -> int:
        """Tokens it has, the pending one included."""
        return len(self.tokens) + self.pending

    @property
    def output_len(self) -> int:
        """Output tokens the host knows."""
        return len(self.tokens) - self.prompt_len

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclasses.dataclass(eq=False, slots=True)
class Request:
    """What the user asked for: one prompt, its parameters, and `params.n` sequences."""

    id: str
    prompt: str | None
    prompt_token_ids: list[int]
    params: SamplingParams
    arrival: int
    """Serial number; earlier requests go first among equal priorities."""
    priority: int = 0
    """Lower numbers go first."""
    salt: bytes = b""
    """Part of the hash of every page: requests with different salts never share pages."""
    adapter: "LoadedAdapter | None" = None
    """What its tokens are computed with; requests share pages only where its digest is equal."""
    media: tuple[Medium, ...] = ()
    """Pictures in the prompt, in order."""
    rotary: np.ndarray | None = None
    """int32 [3, length of the prompt]: where its tokens stand, for a model that rotates by three
    positions; None where they stand at their index."""
    rotary_delta: int = 0
    """What tokens behind the prompt stand beyond their index."""
    eos_ids: frozenset[int] = frozenset()
    """The model's end-of-sequence tokens."""
    stop_ids: frozenset[int] = frozenset()
    """Token ids that end it, by the model or by its parameters."""
    bad_words: list[list[int]] = dataclasses.field(default_factory=list)
    """Token sequences that must not appear in the output."""
    variant: Variant = Variant.GREEDY
    """The least program variant that can serve it."""
    dynamic_bias: bool = False
    """Whether its bias changes while it runs: bad words of several tokens, min_tokens."""
    output_kind: RequestOutputKind = RequestOutputKind.FINAL_ONLY
    """What its outputs hold, and so when there are any."""
    arrival_time: float = 0.0
    """`time.monotonic()` when it was added, seconds."""
    scheduled_time: float | None = None
    """When it first got a slot."""
    first_token_time: float | None = None
    sequences: list[Sequence] = dataclasses.field(default_factory=list)

    @property
    def finished(self) -> bool:
        return all(s.finished for s in self.sequences)

    @property
    def adapter_digest(self) -> str:
        """Empty for the model alone."""
        return "" if self.adapter is None else self.adapter.digest

    @property
    def prepared(self) -> bool:
        """Whether its media are ready to be encoded, so that it can be queued."""
        return all(one.preparing.done() for one in self.media)

    def wait_for_media(self) -> None:
        """Blocks until it is `prepared`. Raises what preparing a medium raised."""
        for one in self.media:
            one.preparing.result()

    @property
    def media_end(self) -> int:
        """Index of the first token behind the last medium."""
        return self.media[-1].end if self.media else 0

    @property
    def streams(self) -> bool:
        """Whether its outputs are wanted token by token rather than at its end."""
        return self.output_kind is not RequestOutputKind.FINAL_ONLY
