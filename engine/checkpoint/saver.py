"""Writes a Quire checkpoint: a model's description and tokenizer, and its parameters by Orbax."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...errors import CheckpointError
from .config_file import read_config
from .layout import CONFIG, is_companion
from .orbax_dir import save_orbax

if TYPE_CHECKING:
    import jax


def save_params(path: str | Path, params: "Mapping[str, jax.Array]", source_folder: Path) -> None:
    """Writes `params` to a new folder that `load_params` and every Quire program can open.

    It gets `quire_params/`, the config (with the type of these parameters) and the tokenizer,
    processor and chat template files of `source_folder`.

    Raises:
        CheckpointError: `path` is a file or a folder with something in it, or cannot be written.
        ModelConfigError: `source_folder` has no valid `config.json`.
    """
    config = read_config(source_folder)
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise CheckpointError(
            f"{path} exists and is not an empty folder, and nothing is overwritten. Give a new "
            "path, or delete it first."
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
        save_orbax(path, params)
        _copy_companions(source_folder, path)
        _write_config(path, config, params)
    except OSError as error:
        raise CheckpointError(
            f"The checkpoint cannot be written to {path}: {error}. Give a path with enough space "
            "where you may write."
        ) from error


def _copy_companions(source: Path, target: Path) -> None:
    for file in source.rglob("*"):
        name = file.relative_to(source).as_posix()
        if file.is_file() and is_companion(name):
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target / name)


def _write_config(path: Path, config: dict[str, object], params: "Mapping[str, jax.Array]") -> None:
    """`dtype="auto"` must give the parameters back as they are, so the config says their type."""
    largest = max(params.values(), key=lambda param: param.nbytes)
    config = {name: value for name, value in config.items() if name != "torch_dtype"}
    config["dtype"] = np.dtype(largest.dtype).name
    (path / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
