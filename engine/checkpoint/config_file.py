"""Reads the JSON files that describe a model."""

import json
from pathlib import Path
from typing import Any

from ...errors import ModelConfigError
from .layout import CONFIG, GENERATION_CONFIG, PREPROCESSOR_CONFIG, PROCESSOR_CONFIG


def read_config(folder: Path) -> dict[str, Any]:
    """The contents of `config.json`.

    Raises:
        ModelConfigError: it is missing, unreadable, or not a JSON object.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise ModelConfigError(
            f"{folder} has no {CONFIG}, so it is no model in Hugging Face layout. Give the folder "
            "that holds config.json, the tokenizer and the weights."
        )
    return _read_object(path)


def read_generation_config(folder: Path) -> dict[str, Any]:
    """The contents of `generation_config.json`; empty where a model has none, as many do.

    Raises:
        ModelConfigError: it is there but unreadable or not a JSON object.
    """
    path = folder / GENERATION_CONFIG
    return _read_object(path) if path.is_file() else {}


def read_preprocessor_config(folder: Path) -> dict[str, Any]:
    """How pictures are prepared: `preprocessor_config.json`, or a part of `processor_config.json`.

    Raises:
        ModelConfigError: neither is there, or one is unreadable or not a JSON object.
    """
    if (path := folder / PREPROCESSOR_CONFIG).is_file():
        return _read_object(path)
    path = folder / PROCESSOR_CONFIG
    part = _read_object(path).get("image_processor") if path.is_file() else None
    if not isinstance(part, dict):
        raise ModelConfigError(
            f"{folder} has no {PREPROCESSOR_CONFIG}, which says how this model's pictures are "
            "prepared. Copy it from where the model comes from."
        )
    return part


def _read_object(path: Path) -> dict[str, Any]:
    try:
        contents = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelConfigError(
            f"{path} cannot be read as JSON: {error}. Download or copy it again."
        ) from error
    if not isinstance(contents, dict):
        raise ModelConfigError(
            f"{path} holds a JSON {type(contents).__name__}, not an object. Take the file that "
            "belongs to the model."
        )
    return contents
