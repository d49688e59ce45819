"""Writers of checkpoint files from numpy arrays, and the folder of files that torch wrote."""

import json
import os
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

Arrays = Mapping[str, np.ndarray]
Writer = Callable[[Path, Arrays], None]

STORAGES = {
    "float64": b"DoubleStorage",
    "float32": b"FloatStorage",
    "float16": b"HalfStorage",
    "bfloat16": b"BFloat16Storage",
    "int64": b"LongStorage",
    "int8": b"CharStorage",
}


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def counts(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(b"J" + struct.pack("<i", value) for value in values) + b"t"


def tensor(key: str, array: np.ndarray) -> bytes:
    """The operations that rebuild a dense tensor from the storage `key`."""
    storage = b"(" + text("storage") + b"ctorch\n" + STORAGES[array.dtype.name] + b"\n"
    storage += text(key) + text("cpu") + b"J" + struct.pack("<i", array.size) + b"tQ"
    strides = tuple(step // array.itemsize for step in array.strides)
    arguments = storage + b"K\0" + counts(array.shape) + counts(strides) + b"\x89N"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def pickled(arrays: Arrays) -> bytes:
    items = (text(name) + tensor(str(i), a) for i, (name, a) in enumerate(arrays.items()))
    return b"\x80\x02}(" + b"".join(items) + b"u."


@pytest.fixture
def run_python() -> Callable[..., str]:
    """Runs a program in a process of its own and gives what it prints."""

    def run(code: str, *args: str, **environment: str) -> str:
        command = [sys.executable, "-c", code, *args]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def fixtures() -> Path:
    return Path(__file__).parents[2] / "fixtures" / "pickles"


@pytest.fixture
def write_safetensors() -> Writer:
    """One safetensors file, by the library of that name."""
    return lambda path, arrays: save_file(dict(arrays), path)


@pytest.fixture
def write_zip() -> Callable[..., None]:
    """One file as torch.save writes it now; `pickle` and `extra` replace and add members."""

    def write(
        path: Path,
        arrays: Arrays,
        *,
        pickle: bytes | None = None,
        extra: Mapping[str, bytes] | None = None,
        compression: int = zipfile.ZIP_STORED,
    ) -> None:
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("archive/data.pkl", pickled(arrays) if pickle is None else pickle)
            for i, array in enumerate(arrays.values()):
                archive.writestr(f"archive/data/{i}", array.tobytes())
            for name, contents in (extra or {}).items():
                archive.writestr(f"archive/{name}", contents)

    return write


@pytest.fixture
def write_legacy() -> Callable[..., None]:
    """One file as torch.save wrote it before version 1.6."""

    def write(
        path: Path, arrays: Arrays, *, pickle: bytes | None = None, little_endian: bool = True
    ) -> None:
        magic = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
        head = [b"\x80\x02\x8a\x0a" + magic + b".", b"\x80\x02M\xe9\x03."]
        head.append(b"\x80\x02}" + text("little_endian") + b"\x89\x88"[little_endian:][:1] + b"s.")
        head.append(pickled(arrays) if pickle is None else pickle)
        keys = b"".join(text(str(i)) for i in range(len(arrays)))
        head.append(b"\x80\x02](" + keys + b"e.")
        data = (struct.pack("<q", array.size) + array.tobytes() for array in arrays.values())
        path.write_bytes(b"".join([*head, *data]))

    return write


@pytest.fixture
def write_sharded() -> Callable[[Path, Mapping[str, Arrays], Writer], None]:
    """Several files and their index; `single` is the name the weights would have in one file."""

    def write(single: Path, shards: Mapping[str, Arrays], write_file: Writer) -> None:
        for file, arrays in shards.items():
            write_file(single.parent / file, arrays)
        weight_map = {name: file for file, arrays in shards.items() for name in arrays}
        index = single.with_name(f"{single.name}.index.json")
        index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    return write
