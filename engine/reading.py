"""The prompts of one call before they are read, which takes a while where media are decoded."""

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from .prompts import Prompt

Job = Callable[[], "Prompt"]
"""Reads one prompt. Raises PromptError, ChatTemplateError or MediaError."""


class Reading:
    """Prompts that are still to be read, in their order."""

    def __init__(self, jobs: Sequence[Job], threads: Executor | None) -> None:
        self.jobs = jobs
        self.threads = threads
        """For prompts with media; None where there are none."""

    @classmethod
    def of(cls, prompts: "Sequence[Prompt]") -> Self:
        """Prompts that were read before."""
        return cls([functools.partial(lambda one: one, prompt) for prompt in prompts], None)

    def __len__(self) -> int:
        return len(self.jobs)

    def all(self) -> "list[Prompt]":
        """All of them, read side by side. Raises what a `Job` raises."""
        if self.threads is None:
            return [job() for job in self.jobs]
        return list(self.threads.map(lambda job: job(), self.jobs))
