"""Reads the JSON files that describe a model."""

import json
from pathlib import Path
from typing import Any

from ...errors import ModelConfigError
from .layout import (
    CONFIG,
    GENERATION_CONFIG,
    PREPROCESSOR_CONFIG,
    PROCESSOR_CONFIG,
    VIDEO_PREPROCESSOR_CONFIG,
)


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


def read_generation_config(*folders: Path) -> dict[str, Any]:
    """The contents of `generation_config.json` in the first of `folders` that has one; empty where
    none has, as of many models.

    Raises:
        ModelConfigError: it is there but unreadable or not a JSON object.
    """
    paths = (folder / GENERATION_CONFIG for folder in folders)
    return next((_read_object(path) for path in paths if path.is_file()), {})


_PROCESSORS = {
    "image": ((PREPROCESSOR_CONFIG,), "image_processor"),
    "video": ((VIDEO_PREPROCESSOR_CONFIG, PREPROCESSOR_CONFIG), "video_processor"),
    "audio": ((PREPROCESSOR_CONFIG,), "feature_extractor"),
}
"""Where it stands how media of a kind are prepared: files, and a part of PROCESSOR_CONFIG."""


def read_preprocessor_config(kind: str, *folders: Path) -> dict[str, Any]:
    """How media of a kind, such as `image`, are prepared: `preprocessor_config.json`, one of videos
    alone, or a part of `processor_config.json`, in the first of `folders` that has any.

    Raises:
        ModelConfigError: none is there, or one is unreadable or not a JSON object.
    """
    for folder in folders:
        if (found := _preprocessor_config(kind, folder)) is not None:
            return found
    raise ModelConfigError(
        f"{folders[0]} has no {' or '.join(_PROCESSORS[kind][0])}, which says how this model takes "
        f"media of the kind {kind!r}. Copy it from where the model comes from."
    )


def _preprocessor_config(kind: str, folder: Path) -> dict[str, Any] | None:
    names, part = _PROCESSORS[kind]
    for name in names:
        if (path := folder / name).is_file():
            return _read_object(path)
    path = folder / PROCESSOR_CONFIG
    found = _read_object(path).get(part) if path.is_file() else None
    return found if isinstance(found, dict) else None


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
