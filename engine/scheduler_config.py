"""The limits of a scheduler."""

import dataclasses
from typing import Literal, get_args

from ..errors import OptionError, nearest

Policy = Literal["fcfs", "priority"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Limits of the scheduler. Raises OptionError for a value out of range."""

    max_num_seqs: int
    """Slots. No more than `max_num_batched_tokens` of them can be in use at once."""
    max_num_batched_tokens: int
    """Most tokens of one step."""
    max_model_len: int
    """Most tokens of one sequence, prompt and output."""
    enable_prefix_caching: bool = True
    policy: Policy = "fcfs"
    """`fcfs` goes by arrival, `priority` by (priority, arrival)."""

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "max_model_len"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name}={getattr(self, name)} must be at least 1.")
        allowed = get_args(Policy)
        if self.policy not in allowed:
            hint = nearest(self.policy, allowed)
            raise OptionError(f"policy={self.policy!r} must be one of {allowed}.{hint}")
