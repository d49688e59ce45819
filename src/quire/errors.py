"""Every exception Quire raises on purpose, in one tree. Imports nothing of Quire.

Each message names the value that was given, what is allowed, and what to do about it.
"""

import difflib
from collections.abc import Iterable


class QuireError(Exception):
    """The root: `except quire.QuireError` catches everything Quire raises on purpose."""


class OptionError(QuireError, ValueError):
    """An engine option or a sampling parameter is unknown, out of range, or contradicts another."""


class PromptError(QuireError, ValueError):
    """A prompt cannot be served: empty, too long, a token id out of range, the wrong type."""


class ChatTemplateError(QuireError, ValueError):
    """A chat template is missing, cannot be read, or refuses the conversation."""


class ModelConfigError(QuireError, ValueError):
    """A model's `config.json` is missing, unreadable, incomplete or contradictory."""


class UnsupportedModelError(QuireError, ValueError):
    """The architecture, quantization or feature of a model is not implemented."""


class CheckpointError(QuireError, ValueError):
    """A checkpoint is missing, truncated, or does not match the model."""


class UnsafeCheckpointError(CheckpointError):
    """A pickle in a checkpoint asks for something other than tensors, so it was not loaded."""


class MemoryBudgetError(QuireError, MemoryError):
    """The model, its temporaries or its pool of KV pages do not fit in the memory allowed."""


class EngineClosedError(QuireError, RuntimeError):
    """The engine was closed, or died of an earlier error, and serves no more requests."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint such as ` Did you mean 'top_p'?` for a misspelt `name`; empty where none is near."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {matches[0]!r}?" if matches else ""
