import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from quire.engine.checkpoint.safetensors_file import open_safetensors
from quire.errors import CheckpointError

DTYPES = (
    *(np.bool_, np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64),
    *(np.float16, ml_dtypes.bfloat16, np.float32, np.float64),
)


def write_raw(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(dtype: Any, shape: Any, start: Any, stop: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize("dtype", DTYPES)
def test_reads_what_the_library_writes(
    tmp_path: Path, write_safetensors: Callable[..., None], dtype: type
) -> None:
    path = tmp_path / "model.safetensors"
    arrays = {
        "b": np.arange(6).reshape(2, 3).astype(dtype),
        "a": np.ones((), dtype),
        "none": np.zeros((0, 4), dtype),
    }
    write_safetensors(path, arrays)
    tensors = open_safetensors(path)
    assert tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        assert tensors[name].array.dtype == array.dtype
        np.testing.assert_array_equal(tensors[name].array, array)


def test_float8_is_recognised(tmp_path: Path) -> None:
    header = {"a": entry("F8_E4M3", [2], 0, 2), "b": entry("F8_E5M2", [1], 2, 3)}
    tensors = open_safetensors(write_raw(tmp_path / "x", header, b"\x38\x38\x3c"))
    assert tensors["a"].array.astype(np.float32).tolist() == [1, 1]
    assert tensors["b"].array.astype(np.float32).tolist() == [1]


def test_tensors_are_read_only_views_of_the_file(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "x", {"a": entry("U8", [3], 0, 3)}, b"abc")
    array = open_safetensors(path)["a"].array
    with path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"z")
    assert bytes(array) == b"abz"
    assert not array.flags.writeable


def test_metadata_is_no_tensor(tmp_path: Path) -> None:
    header = {"__metadata__": {"format": "pt"}, "a": entry("U8", [1], 0, 1)}
    assert list(open_safetensors(write_raw(tmp_path / "x", header, b"a"))) == ["a"]


def test_types_that_are_not_known_are_listed(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "x", {"a": entry("F4", [2], 0, 1)}, b"a")
    with pytest.raises(CheckpointError, match="tensor 'a' has type 'F4'; known are BOOL, U8"):
        open_safetensors(path)


@pytest.mark.parametrize(
    ("header", "data", "what"),
    [
        (b"{", b"", "not valid JSON"),
        (b"[1]", b"", "not a JSON object"),
        (b"[" * 100_000, b"", "not valid JSON"),
        (b"\xff{}", b"", "not valid JSON"),
        (b'{"a": ' + b"1" * 5000 + b"}", b"", "not valid JSON"),
        (b'{"a": {}, "a": {}}', b"", "a name occurs twice"),
        ({"a": 5}, b"", "entry of 'a' is 5"),
        ({"a": {"dtype": "U8"}}, b"", "entry of 'a'"),
        ({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0]}}, b"a", "entry of 'a'"),
        ({"a": entry("U8", [1.0], 0, 1)}, b"a", "entry of 'a'"),
        ({"a": entry("U8", 1, 0, 1)}, b"a", "entry of 'a'"),
        ({"a": entry("U8", [True], 0, 1)}, b"a", "entry of 'a'"),
        ({"a": entry("U8", [-1], 0, -1)}, b"a", "entry of 'a'"),
        ({"a": entry("U8", [1], "0", 1)}, b"a", "entry of 'a'"),
        ({"a": entry("F32", [2], 0, 4)}, b"abcd", r"shape \[2\] has 4 bytes"),
        ({"a": entry("U8", [2], 0, 2)}, b"a", "should take 2 bytes, but there are 1"),
        ({"a": entry("U8", [1], 0, 1)}, b"ab", "should take 1 bytes, but there are 2"),
        ({"a": entry("U8", [2], 0, 2), "b": entry("U8", [2], 1, 3)}, b"abc", "'b' overlaps"),
        ({"a": entry("U8", [1], 0, 1), "b": entry("U8", [1], 2, 3)}, b"abc", "'b' follows a gap"),
        ({"a": entry("U8", [0] * 100, 0, 0)}, b"", "a tensor of shape"),
        ({"a": entry("U8", [2**62, 2**62, 0], 0, 0)}, b"", "a tensor of shape"),
    ],
)
def test_bad_headers(tmp_path: Path, header: object, data: bytes, what: str) -> None:
    path = write_raw(tmp_path / "bad.safetensors", header, data)
    with pytest.raises(CheckpointError, match=rf"bad\.safetensors is damaged: .*{what}"):
        open_safetensors(path)


@pytest.mark.parametrize("size", [0, 4, 7])
def test_a_file_shorter_than_the_header_length(tmp_path: Path, size: int) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"\x10\0\0\0\0\0\0\0"[:size])
    with pytest.raises(CheckpointError, match="is damaged"):
        open_safetensors(path)


def test_a_header_longer_than_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    with pytest.raises(CheckpointError, match="the file at byte 10"):
        open_safetensors(path)


def test_every_truncation_is_noticed(
    tmp_path: Path, write_safetensors: Callable[..., None]
) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": np.arange(4.0), "b": np.arange(3)})
    whole = path.read_bytes()
    for size in range(0, len(whole), math.ceil(len(whole) / 50)):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="is damaged"):
            open_safetensors(path)
