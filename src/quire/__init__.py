"""Quire: LLM inference on NVIDIA GPUs, in JAX.

The public names, and nothing else. They load when first used, so that `import quire` is instant.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .errors import (
    ChatTemplateError,
    CheckpointError,
    EngineClosedError,
    MemoryBudgetError,
    ModelConfigError,
    OptionError,
    PromptError,
    QuireError,
    UnsafeCheckpointError,
    UnsupportedModelError,
)

if TYPE_CHECKING:
    from .engine.async_engine import AsyncEngine
    from .engine.chat import load_chat_template
    from .engine.engine import Engine, Engine as LLM
    from .engine.inspect import ModelInfo, model_info
    from .engine.options import EngineOptions
    from .engine.outputs import (
        BeamSearchOutput,
        CompletionOutput,
        Logprob,
        RequestOutput,
    )
    from .engine.sampling_params import BeamSearchParams, RequestOutputKind, SamplingParams
    from .engine.stats import EngineStats
    from .engine.structured_outputs import StructuredOutputsParams

__version__ = "0.1.0"

_HOMES = {
    "AsyncEngine": "async_engine",
    "BeamSearchOutput": "outputs",
    "BeamSearchParams": "sampling_params",
    "CompletionOutput": "outputs",
    "Engine": "engine",
    "EngineOptions": "options",
    "EngineStats": "stats",
    "LLM": "engine",
    "Logprob": "outputs",
    "ModelInfo": "inspect",
    "RequestOutput": "outputs",
    "RequestOutputKind": "sampling_params",
    "SamplingParams": "sampling_params",
    "StructuredOutputsParams": "structured_outputs",
    "load_chat_template": "chat",
    "model_info": "inspect",
}

__all__ = [
    "LLM",
    "AsyncEngine",
    "BeamSearchOutput",
    "BeamSearchParams",
    "ChatTemplateError",
    "CheckpointError",
    "CompletionOutput",
    "Engine",
    "EngineClosedError",
    "EngineOptions",
    "EngineStats",
    "Logprob",
    "MemoryBudgetError",
    "ModelConfigError",
    "ModelInfo",
    "OptionError",
    "PromptError",
    "QuireError",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
    "StructuredOutputsParams",
    "UnsafeCheckpointError",
    "UnsupportedModelError",
    "load_chat_template",
    "model_info",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'quire' has no attribute {name!r}")
    module = importlib.import_module(f".engine.{_HOMES[name]}", __name__)
    value = getattr(module, "Engine" if name == "LLM" else name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
