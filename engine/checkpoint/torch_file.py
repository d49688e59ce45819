"""Reads `pytorch_model.bin` in both of its forms, without torch and without running its pickle.

Since torch 1.6 the file is a zip archive: `NAME/data.pkl` describes the tensors and `NAME/data/KEY`
are the bytes of their storages. Before, it was a row of pickles followed by the storages.
"""

import io
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

from ...errors import CheckpointError, UnsafeCheckpointError
from .mapped_file import MappedFile, StoredTensor
from .problems import damaged
from .torch_pickle import Storage, TensorRef, state_dict, unpickle

_ZIP_MAGIC = b"PK\x03\x04"
_ZIP_HEADER_BYTES = 30
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_COUNT_BYTES = 8

_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    LookupError,
    OSError,
    OverflowError,
    RuntimeError,  # among them NotImplementedError, for ways to pack a file
    ValueError,
    struct.error,
)

Offsets = dict[str, int]
"""Where in the file each storage begins, by key."""


def open_torch_file(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file by name, as views: only their description is read.

    Raises:
        CheckpointError: the file is truncated, damaged, big-endian, or no state dict.
        UnsafeCheckpointError: its pickle asks for something other than tensors.
    """
    file = MappedFile(path)
    is_zip = file.map[: len(_ZIP_MAGIC)] == _ZIP_MAGIC
    contents, offsets = _read_zip(file) if is_zip else _read_legacy(file)
    tensors = state_dict(contents, path)
    return {name: StoredTensor(_view(file, offsets, ref), file) for name, ref in tensors.items()}


def _view(file: MappedFile, offsets: Offsets, ref: TensorRef) -> Any:
    itemsize = ref.dtype.itemsize
    start = offsets[ref.storage.key] + ref.offset * itemsize
    if 0 in ref.shape:
        return file.view(ref.dtype, ref.shape, 0)
    return file.view(ref.dtype, ref.shape, start, [step * itemsize for step in ref.strides])


def _require_little_endian(path: Path, is_little: bool) -> None:
    if not is_little:
        raise CheckpointError(
            f"{path} was written on a big-endian machine, which Quire does not read. Save it again "
            "on a little-endian one, such as any x86 or ARM machine."
        )


def _read_zip(file: MappedFile) -> tuple[Any, Offsets]:
    try:
        with zipfile.ZipFile(file.path) as archive:
            members = _members(file.path, archive)
            pickled = archive.read(_stored(file.path, members, "data.pkl"))
            order = b"little"  # what files older than this entry are
            if "byteorder" in members:
                order = archive.read(_stored(file.path, members, "byteorder"))
    except CheckpointError:
        raise
    except _ZIP_ERRORS as error:
        raise damaged(file.path, f"it is no valid archive ({error})") from error
    _require_little_endian(file.path, order == b"little")
    contents, storages = unpickle(io.BytesIO(pickled), file.path)
    return contents, {s.key: _storage_offset(file, members, s) for s in storages.values()}


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The files in the archive by their names below its one top folder."""
    infos = archive.infolist()
    roots = {info.filename.partition("/")[0] for info in infos}
    if len(roots) != 1:
        raise damaged(path, f"its archive has {len(roots)} top folders instead of one")
    members = {info.filename.partition("/")[2]: info for info in infos}
    if "constants.pkl" in members:
        raise UnsafeCheckpointError(
            f"{path} holds a TorchScript program, which is code, not a state dict of tensors. Use "
            "a safetensors version of these weights, or save the model's state dict."
        )
    return members


def _stored(path: Path, members: dict[str, zipfile.ZipInfo], name: str) -> zipfile.ZipInfo:
    """The member `name`, which must lie in the archive as it is, neither packed nor encrypted."""
    if name not in members:
        raise damaged(path, f"its archive has no {name}")
    info = members[name]
    plain = info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1
    if not plain or info.compress_size != info.file_size:
        raise CheckpointError(
            f"{path}: {name} is compressed or encrypted in the archive, so it cannot be mapped. "
            "Load and save the file again with torch, which stores it plainly."
        )
    return info


def _storage_offset(file: MappedFile, members: dict[str, zipfile.ZipInfo], storage: Storage) -> int:
    info = _stored(file.path, members, f"data/{storage.key}")
    header = file.map[info.header_offset : info.header_offset + _ZIP_HEADER_BYTES]
    if len(header) != _ZIP_HEADER_BYTES or not header.startswith(_ZIP_MAGIC):
        raise damaged(file.path, f"its archive has no {info.filename} where it should be")
    # the lengths of name and extra field; the latter differs from the archive's directory
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    start = info.header_offset + _ZIP_HEADER_BYTES + lengths
    if info.file_size < storage.nbytes:
        raise damaged(file.path, f"storage {storage.key} should have {storage.nbytes} bytes")
    return start


def _read_legacy(file: MappedFile) -> tuple[Any, Offsets]:
    def load() -> Any:
        return unpickle(file.map, file.path)

    (magic, _), (protocol, _), (system, _) = load(), load(), load()
    if magic != _LEGACY_MAGIC or protocol != _LEGACY_PROTOCOL or not isinstance(system, dict):
        raise damaged(file.path, "it does not begin as torch.save would")
    _require_little_endian(file.path, system.get("little_endian") is True)
    contents, storages = load()
    keys, _ = load()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise damaged(file.path, "it has no list of storages")
    return contents, _legacy_offsets(file, keys, storages)


def _legacy_offsets(file: MappedFile, keys: list[str], storages: dict[str, Storage]) -> Offsets:
    if set(keys) != set(storages):
        raise damaged(file.path, "its list of storages differs from those its tensors use")
    offsets: Offsets = {}
    position = file.map.tell()
    for key in keys:
        storage = storages[key]
        count = int.from_bytes(file.map[position : position + _COUNT_BYTES], "little")
        offsets[key] = position + _COUNT_BYTES
        position = offsets[key] + storage.nbytes
        if count != storage.size or position > file.nbytes:
            raise damaged(file.path, f"storage {key} should have {storage.nbytes} bytes")
    return offsets
