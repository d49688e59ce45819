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
    from . import batch, ray as ray
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
    from .engine.processes import leads
    from .engine.sampling_params import BeamSearchParams, RequestOutputKind, SamplingParams
    from .engine.stats import EngineStats
    from .engine.structured_outputs import StructuredOutputsParams
    from .lora.errors import AdapterError
    from .lora.request import LoRARequest
    from .multimodal.errors import MediaError

__version__ = "0.1.0"

_HOMES = {
    "AdapterError": "lora.errors",
    "AsyncEngine": "engine.async_engine",
    "BeamSearchOutput": "engine.outputs",
    "BeamSearchParams": "engine.sampling_params",
    "CompletionOutput": "engine.outputs",
    "Engine": "engine.engine",
    "EngineOptions": "engine.options",
    "EngineStats": "engine.stats",
    "LLM": "engine.engine",
    "LoRARequest": "lora.request",
    "Logprob": "engine.outputs",
    "MediaError": "multimodal.errors",
    "ModelInfo": "engine.inspect",
    "RequestOutput": "engine.outputs",
    "RequestOutputKind": "engine.sampling_params",
    "SamplingParams": "engine.sampling_params",
    "StructuredOutputsParams": "engine.structured_outputs",
    "leads": "engine.processes",
    "load_chat_template": "engine.chat",
    "model_info": "engine.inspect",
}

__all__ = [
    "LLM",
    "AdapterError",
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
    "LoRARequest",
    "Logprob",
    "MediaError",
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
    "batch",
    "leads",
    "load_chat_template",
    "model_info",
]
"""Not `ray`: `from quire import *` needs no extra."""


def __getattr__(name: str) -> Any:
    if name in ("batch", "ray"):
        return importlib.import_module(f".{name}", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module 'quire' has no attribute {name!r}")
    module = importlib.import_module(f".{_HOMES[name]}", __name__)
    value = getattr(module, "Engine" if name == "LLM" else name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
