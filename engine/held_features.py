"""Which sequences hold the features of their media, and for how long. Plain Python, no jax."""

from collections.abc import Iterable

import numpy as np

from ..errors import MemoryBudgetError
from .feature_pool import FeaturePool, rows_for
from .media import Medium
from .request import Request, Sequence


class HeldFeatures:
    """A sequence holds features from its admission until its last medium is in a step."""

    def __init__(self, pool: FeaturePool) -> None:
        self._pool = pool
        self._done: list[Sequence] = []
        """Their last media are in steps that were handed out."""

    def check(self, request: Request) -> None:
        """Raises MemoryBudgetError for media that there is never room for."""
        if (needed := rows_for(request.media)) > self._pool.num_rows:
            raise MemoryBudgetError(
                f"the media of request {request.id} need room for {needed} features, and this "
                f"engine has it for {self._pool.num_rows}. Send fewer or smaller ones, or raise "
                "mm_encoder_cache_gb."
            )

    def start_step(self) -> None:
        """Gives up what is needed no more: what is encoded from now on comes behind that step."""
        for sequence in self._done:
            self.release(sequence)
        self._done.clear()

    def hold(self, sequence: Sequence, start: int) -> bool:
        """Takes room for the media of a sequence of which tokens from `start` on are computed.

        False where there is none now.
        """
        if start >= sequence.request.media_end:
            return True
        rows = self._pool.acquire(sequence.request.media)
        sequence.feature_rows = rows or []
        return rows is not None

    def scheduled(self, sequence: Sequence) -> None:
        """Notes how far a sequence will be computed by the step that is being made."""
        if sequence.feature_rows and sequence.computed >= sequence.request.media_end:
            self._done.append(sequence)

    def release(self, sequence: Sequence) -> None:
        """Gives up the features of a sequence, if it holds any."""
        if sequence.feature_rows:
            sequence.feature_rows = []
            self._pool.release(sequence.request.media)

    def take_new(self) -> list[tuple[Medium, np.ndarray]]:
        """Media to encode before the step, and where their features go."""
        return self._pool.take_new()

    def check_integrity(self, running: Iterable[Sequence]) -> None:
        """Raises AssertionError where rows are lost, owned twice, or held by nobody."""
        self._pool.check_integrity([s.request.media for s in running if s.feature_rows])
