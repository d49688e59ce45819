"""Writes a Quire checkpoint: a model's description and tokenizer, and its parameters by Orbax."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...errors import CheckpointError
from .config_file import read_config
from .layout import CONFIG, GENERATION_CONFIG, PREPROCESSORS, has_vocabulary, is_companion
from .orbax_dir import save_orbax
from .parts import FoundPart, joined

if TYPE_CHECKING:
    import jax


def save_params(
    path: str | Path,
    params: "Mapping[str, jax.Array]",
    source_folder: Path,
    parts: Mapping[str, FoundPart] | None = None,
    copies: Mapping[str, int] | None = None,
) -> None:
    """Writes `params` to a new folder that `load_params` and every Quire program can open.

    It gets `quire_params/`, the config (with the type of these parameters) and the tokenizer,
    processor and chat template files of `source_folder`, and from `parts`, by kind, what it lacks.
    Of KV heads that parameters hold several `copies` of, it gets one.

    Raises:
        CheckpointError: `path` is a file or a folder with something in it, or cannot be written.
        ModelConfigError: `source_folder` has no valid `config.json`.
    """
    parts = parts or {}
    config = joined(read_config(source_folder), parts.values())
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise CheckpointError(
            f"{path} exists and is not an empty folder, and nothing is overwritten. Give a new "
            "path, or delete it first."
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
        save_orbax(path, params, copies)
        _copy_companions(source_folder, parts, path)
        _write_config(path, config, params)
    except OSError as error:
        raise CheckpointError(
            f"The checkpoint cannot be written to {path}: {error}. Give a path with enough space "
            "where you may write."
        ) from error


def _copy_companions(source: Path, parts: Mapping[str, FoundPart], target: Path) -> None:
    files = _companions(source)
    for kind, part in parts.items():
        others = _companions(part.folder).items()
        files = {name: file for name, file in others if _adds(kind, name, source)} | files
    for name, file in files.items():
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(file, target / name)


def _companions(folder: Path) -> dict[str, Path]:
    names = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*")}
    return {name: file for name, file in names.items() if is_companion(name) and file.is_file()}


def _adds(kind: str, name: str, source: Path) -> bool:
    """Whether the part of a kind may add a companion to those in `source`. A tokenizer is taken
    whole."""
    if kind != "text":
        return name in PREPROCESSORS
    if has_vocabulary(source):
        return name == GENERATION_CONFIG
    return name not in (CONFIG, *PREPROCESSORS)


def _write_config(path: Path, config: dict[str, object], params: "Mapping[str, jax.Array]") -> None:
    """`dtype="auto"` must give the parameters back as they are, so the config says their type."""
    largest = max(params.values(), key=lambda param: param.nbytes)
    config = {name: value for name, value in config.items() if name != "torch_dtype"}
    config["dtype"] = np.dtype(largest.dtype).name
    (path / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
