from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quire.engine.checkpoint import open_tensors
from quire.errors import CheckpointError

Write = Callable[..., None]


def test_safetensors_are_preferred(
    tmp_path: Path, write_safetensors: Write, write_zip: Write
) -> None:
    write_safetensors(tmp_path / "model.safetensors", {"s": np.ones(1)})
    write_zip(tmp_path / "pytorch_model.bin", {"p": np.ones(1)})
    assert list(open_tensors(tmp_path)) == ["s"]
    (tmp_path / "model.safetensors").unlink()
    assert list(open_tensors(tmp_path)) == ["p"]


def test_shards_that_torch_wrote(fixtures: Path) -> None:
    tensors = open_tensors(fixtures)
    assert tensors["a"].array.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert tensors["b"].array.astype(np.float32).tolist() == [0, 1, 2, 3]


def test_other_formats_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    (tmp_path / "model.Q4_K_M.gguf").touch()
    with pytest.raises(
        CheckpointError, match=r"holds config\.json, model\.Q4_K_M\.gguf.*safetensors.*GGUF"
    ):
        open_tensors(tmp_path)


def test_an_empty_and_a_missing_folder(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(CheckpointError, match="it holds nothing"):
            open_tensors(folder)
