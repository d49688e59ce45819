"""Numbers about a running engine."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class EngineStats:
    """What `Engine.stats()` returns: a snapshot. Counters start at 0 with the engine."""

    num_running: int
    """Sequences that hold pages now."""
    num_waiting: int
    num_pages: int
    """KV pages there are, the null page left out."""
    pages_in_use: int
    """KV pages that a sequence holds; cached pages nobody holds are free."""
    prefix_cache_queried_tokens: int
    """Prompt tokens looked up in the prefix cache."""
    prefix_cache_hit_tokens: int
    """Of those, found."""
    num_preemptions: int
    prompt_tokens: int
    """Prompt tokens of all requests so far."""
    generation_tokens: int
    """Tokens sampled and kept."""
    num_steps: int
    programs_compiled: int
    ready: bool
    """Whether all planned programs are compiled."""
    uptime: float
    """Seconds since the engine was asked for."""
