import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quire.engine.checkpoint import open_tensors
from quire.errors import CheckpointError

A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(
    tmp_path: Path, write_sharded: Callable[..., None], write_safetensors: Callable[..., None]
) -> Path:
    shards = {A: {"a": np.arange(3.0)}, B: {"b": np.arange(2), "c": np.ones(1)}}
    write_sharded(tmp_path / "model.safetensors", shards, write_safetensors)
    return tmp_path


def test_tensors_of_all_files(folder: Path) -> None:
    tensors = open_tensors(folder)
    assert {name: t.array.tolist() for name, t in tensors.items()} == {
        "a": [0, 1, 2],
        "b": [0, 1],
        "c": [1],
    }


def test_a_tensor_that_the_index_forgot_is_still_found(folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": A, "b": B}}))
    assert open_tensors(folder).keys() == {"a", "b", "c"}


def test_the_index_decides_between_two_of_a_name(
    folder: Path, write_safetensors: Callable[..., None]
) -> None:
    write_safetensors(folder / B, {"a": np.zeros(3), "b": np.arange(2), "c": np.ones(1)})
    assert open_tensors(folder)["a"].array.tolist() == [0, 1, 2]


def test_missing_files_are_listed(folder: Path) -> None:
    (folder / B).unlink()
    with pytest.raises(CheckpointError, match=f"names 2 files, of which 1 are missing: {B}"):
        open_tensors(folder)


def test_a_tensor_that_is_not_where_the_index_says(folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": B, "b": B}}))
    with pytest.raises(CheckpointError, match=f"names 1 tensors .* a in {B}"):
        open_tensors(folder)


@pytest.mark.parametrize(
    "contents",
    ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": [1]}', '{"weight_map": {"a": 1}}'],
)
def test_an_invalid_index(folder: Path, contents: str) -> None:
    (folder / INDEX).write_text(contents)
    with pytest.raises(CheckpointError, match="no valid weight_map"):
        open_tensors(folder)


@pytest.mark.parametrize("file", ["../secret", "/etc/passwd", "sub/model.safetensors"])
def test_files_outside_the_folder_are_refused(folder: Path, file: str) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": file}}))
    with pytest.raises(CheckpointError, match="outside its own folder"):
        open_tensors(folder)
