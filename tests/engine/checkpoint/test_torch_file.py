import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quire.engine.checkpoint.torch_file import open_torch_file
from quire.errors import CheckpointError, UnsafeCheckpointError

Write = Callable[..., None]
FORMS = ("zip", "legacy")

OLD_TYPES = ("float64", "float32", "float16", "bfloat16")
OLD_TYPES += ("int64", "int32", "int16", "int8", "uint8")
NEW_TYPES = ("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2")
COUNTED = np.arange(6).reshape(2, 3)

EXPECTED: dict[str, np.ndarray] = {
    **dict.fromkeys(OLD_TYPES, COUNTED),
    "bool": np.array([True, False, True]),
    "scalar": np.array(7),
    "empty": np.zeros((0, 4)),
    "transposed": np.arange(12).reshape(3, 4).T,
    "expanded": np.repeat(np.arange(3), 4).reshape(3, 4),
    "shared_all": np.arange(10),
    "shared_tail": np.arange(6, 10),
    "shared_odd": np.arange(1, 10, 2),
    "parameter": np.arange(4),
}


@pytest.mark.parametrize("name", ["zip", "legacy", "zip_protocol4", "legacy_protocol4"])
def test_files_that_torch_wrote(fixtures: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # an import of it would fail
    tensors = open_torch_file(fixtures / f"{name}.bin")
    assert tensors.keys() == EXPECTED.keys()
    for key, expected in EXPECTED.items():
        array = tensors[key].array
        assert array.shape == expected.shape
        assert array.dtype.name == (key if key in (*OLD_TYPES, "bool") else "float32")
        np.testing.assert_array_equal(array.astype(np.float64), expected)


def test_types_without_a_storage_class(fixtures: Path) -> None:
    tensors = open_torch_file(fixtures / "zip_new_types.bin")
    for name in NEW_TYPES:
        assert tensors[name].array.dtype.name == name
        np.testing.assert_array_equal(tensors[name].array.astype(np.float64), COUNTED)


@pytest.mark.parametrize("form", FORMS)
def test_a_nested_state_dict(fixtures: Path, form: str) -> None:
    tensors = open_torch_file(fixtures / f"{form}_nested.bin")
    assert {name: t.array.tolist() for name, t in tensors.items()} == {"w": [0, 1]}


@pytest.mark.parametrize("form", FORMS)
def test_other_things_beside_tensors(fixtures: Path, form: str) -> None:
    with pytest.raises(CheckpointError, match="entry 'step' is int, not a tensor"):
        open_torch_file(fixtures / f"{form}_mixed.bin")


@pytest.mark.parametrize("form", FORMS)
def test_a_whole_module_is_not_loaded(fixtures: Path, form: str) -> None:
    with pytest.raises(UnsafeCheckpointError, match=r"asks for torch\.nn\.modules\.linear\.Linear"):
        open_torch_file(fixtures / f"{form}_module.bin")


def test_torchscript_is_not_loaded(fixtures: Path) -> None:
    with pytest.raises(UnsafeCheckpointError, match="TorchScript program"):
        open_torch_file(fixtures / "torchscript.bin")


def test_shared_storages_are_one_piece_of_the_file(fixtures: Path) -> None:
    tensors = open_torch_file(fixtures / "zip.bin")
    assert np.shares_memory(tensors["shared_all"].array, tensors["shared_tail"].array)
    assert tensors["shared_all"].file is tensors["float32"].file


@pytest.fixture(params=FORMS)
def write(request: pytest.FixtureRequest) -> Write:
    return request.getfixturevalue(f"write_{request.param}")


def test_the_writers_of_these_tests(tmp_path: Path, write: Write) -> None:
    arrays = {"a": np.arange(6, dtype=np.float16).reshape(2, 3), "b": np.array(1.5)}
    write(tmp_path / "x.bin", arrays)
    tensors = open_torch_file(tmp_path / "x.bin")
    for name, array in arrays.items():
        np.testing.assert_array_equal(tensors[name].array, array, strict=True)


def test_reading_is_lazy(tmp_path: Path, write: Write) -> None:
    path = tmp_path / "x.bin"
    write(path, {"a": np.full(4, 7, np.int8)})
    array = open_torch_file(path)["a"].array
    contents = path.read_bytes().replace(b"\x07\x07\x07\x07", b"\x09\x09\x09\x09")
    with path.open("r+b") as file:
        file.write(contents)
    assert array.tolist() == [9, 9, 9, 9]
    assert not array.flags.writeable


def test_every_truncation_is_noticed(tmp_path: Path, write: Write) -> None:
    path = tmp_path / "x.bin"
    write(path, {"a": np.arange(4.0), "b": np.arange(3)})
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="is damaged"):
            open_torch_file(path)


def test_big_endian_is_refused(tmp_path: Path, write_zip: Write, write_legacy: Write) -> None:
    path = tmp_path / "x.bin"
    write_zip(path, {"a": np.ones(1)}, extra={"byteorder": b"big"})
    with pytest.raises(CheckpointError, match="big-endian"):
        open_torch_file(path)
    write_legacy(path, {"a": np.ones(1)}, little_endian=False)
    with pytest.raises(CheckpointError, match="big-endian"):
        open_torch_file(path)


def test_compressed_members_are_refused(tmp_path: Path, write_zip: Write) -> None:
    write_zip(tmp_path / "x", {"a": np.ones(99)}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match=r"data\.pkl is compressed or encrypted"):
        open_torch_file(tmp_path / "x")


@pytest.mark.parametrize(
    ("members", "what"),
    [
        ({"a/data.pkl": b"}.", "b/version": b"3"}, "2 top folders"),
        ({"a/version": b"3"}, r"no data\.pkl"),
        ({"a/data.pkl": b""}, "its pickle cannot be read"),
    ],
)
def test_other_archives(tmp_path: Path, members: dict[str, bytes], what: str) -> None:
    path = tmp_path / "x"
    with zipfile.ZipFile(path, "w") as archive:
        for name, contents in members.items():
            archive.writestr(name, contents)
    with pytest.raises(CheckpointError, match=what):
        open_torch_file(path)


def test_storages_that_are_missing_or_short(tmp_path: Path, write_zip: Write) -> None:
    path = tmp_path / "x"
    write_zip(path, {"a": np.ones(4)})
    pickle = zipfile.ZipFile(path).read("archive/data.pkl")
    write_zip(path, {}, pickle=pickle)
    with pytest.raises(CheckpointError, match="no data/0"):
        open_torch_file(path)
    write_zip(path, {"a": np.ones(3)}, pickle=pickle)
    with pytest.raises(CheckpointError, match="storage 0 should have 32 bytes"):
        open_torch_file(path)


def test_legacy_storages_must_be_those_of_the_tensors(tmp_path: Path, write_legacy: Write) -> None:
    path = tmp_path / "x"
    write_legacy(path, {"a": np.ones(1)}, pickle=b"\x80\x02}.")
    with pytest.raises(CheckpointError, match="list of storages differs"):
        open_torch_file(path)


@pytest.mark.parametrize("contents", [b"<html>not found</html>", b"\x80\x02N." * 4, b"\0" * 100])
def test_files_of_another_kind(tmp_path: Path, contents: bytes) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(contents)
    with pytest.raises(CheckpointError, match="is damaged"):
        open_torch_file(tmp_path / "pytorch_model.bin")
