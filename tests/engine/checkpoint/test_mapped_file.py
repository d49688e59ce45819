from pathlib import Path

import numpy as np
import pytest

from quire.engine.checkpoint.mapped_file import MappedFile
from quire.errors import CheckpointError


@pytest.fixture
def file(tmp_path: Path) -> MappedFile:
    path = tmp_path / "data"
    path.write_bytes(np.arange(10_000, dtype=np.uint16).tobytes())
    return MappedFile(path)


def test_views(file: MappedFile) -> None:
    dtype = np.dtype(np.uint16)
    assert file.nbytes == 20_000
    assert file.view(dtype, (2, 3), 20).tolist() == [[10, 11, 12], [13, 14, 15]]
    assert file.view(dtype, (2, 3), 0, (2, 4)).tolist() == [[0, 2, 4], [1, 3, 5]]
    assert file.view(dtype, (0,), 20_000).size == 0


@pytest.mark.parametrize(
    ("shape", "offset"), [((10_001,), 0), ((1,), 19_999), ((1,), -2), ((2**62, 4), 0)]
)
def test_views_stay_within_the_file(file: MappedFile, shape: tuple[int, ...], offset: int) -> None:
    with pytest.raises(CheckpointError, match="data is damaged: a tensor"):
        file.view(np.dtype(np.uint16), shape, offset)


@pytest.mark.parametrize("offset", [0, 2, 8000])
def test_a_released_view_can_still_be_read(file: MappedFile, offset: int) -> None:
    view = file.view(np.dtype(np.uint16), (5000,), offset)
    expected = view.copy()
    file.release(view)
    file.release(view[:0])
    np.testing.assert_array_equal(view, expected)


def test_missing_and_empty_files(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for name in ("missing", "empty"):
        with pytest.raises(CheckpointError, match=f"{name} is damaged"):
            MappedFile(tmp_path / name)


def test_git_lfs_pointer(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        MappedFile(path)
