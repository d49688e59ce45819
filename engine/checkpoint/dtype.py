"""Which number type a model's parameters get."""

import logging
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from ...errors import ModelConfigError, OptionError, nearest

logger = logging.getLogger(__name__)

_DTYPE_KEYS = ("dtype", "torch_dtype")
"""Where `config.json` names the type: now, and before transformers 5."""

_FLOAT16 = np.dtype(np.float16)
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_FLOAT32 = np.dtype(np.float32)

_NAMES = {
    "half": _FLOAT16,
    "float16": _FLOAT16,
    "bfloat16": _BFLOAT16,
    "float": _FLOAT32,
    "float32": _FLOAT32,
}


def resolve_dtype(requested: str, hf_config: Mapping[str, Any], platform: str) -> np.dtype:
    """The type of the parameters: the one `requested`, or with "auto" the checkpoint's own.

    Args:
        requested: "auto", "half", "float16", "bfloat16", "float" or "float32".
        hf_config: the contents of `config.json`; its `dtype` (formerly `torch_dtype`) counts,
            and no entry means float32.
        platform: of the device, "cpu" or "gpu". Off the CPU, "auto" turns float32 into bfloat16.

    Raises:
        OptionError: `requested` is none of these.
        ModelConfigError: "auto", and the checkpoint's type is none of these.
    """
    if requested != "auto":
        return _named(requested)
    dtype = _checkpoint_dtype(hf_config)
    if dtype == _FLOAT32 and platform != "cpu":
        logger.info(
            "The checkpoint is float32; its weights become bfloat16. dtype='float32' keeps them."
        )
        return _BFLOAT16
    return dtype


def _named(requested: str) -> np.dtype:
    if not isinstance(requested, str) or requested not in _NAMES:
        allowed = ["auto", *_NAMES]
        raise OptionError(
            f"dtype={requested!r} is not known; it must be one of {', '.join(allowed)}."
            + nearest(str(requested), allowed)
        )
    return _NAMES[requested]


def _checkpoint_dtype(hf_config: Mapping[str, Any]) -> np.dtype:
    text_config = hf_config.get("text_config") or {}
    found = (config.get(key) for config in (hf_config, text_config) for key in _DTYPE_KEYS)
    name = next(filter(None, found), "float32")
    short = str(name).removeprefix("torch.")
    if short not in _NAMES:
        raise ModelConfigError(
            f"config.json gives the type of the weights as {name!r}; Quire runs float16, bfloat16 "
            "and float32. Choose one with dtype=..., for example dtype='bfloat16'."
        )
    return _NAMES[short]
