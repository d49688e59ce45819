"""Reads safetensors: eight bytes of header length, a JSON header, then the tensors, end to end.

https://huggingface.co/docs/safetensors describes the format.
"""

import json
import math
import reprlib
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from ...errors import CheckpointError
from .mapped_file import MappedFile, StoredTensor
from .problems import damaged

_LENGTH_BYTES = 8

_DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}


class _Entry(NamedTuple):
    start: int
    stop: int
    name: str
    dtype: np.dtype
    shape: tuple[int, ...]


def open_safetensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file by name, as views: only the header is read.

    Raises:
        CheckpointError: the file is truncated, its header is not valid, or a type is not known.
    """
    file = MappedFile(path)
    header, start = _read_header(file)
    entries = sorted(_entry(path, *item) for item in header.items() if item[0] != "__metadata__")
    _check_spans(path, entries, file.nbytes - start)
    return {
        entry.name: StoredTensor(file.view(entry.dtype, entry.shape, start + entry.start), file)
        for entry in entries
    }


def _read_header(file: MappedFile) -> tuple[dict[str, Any], int]:
    """The header, and where the tensors begin."""
    start = _LENGTH_BYTES + int.from_bytes(file.map[:_LENGTH_BYTES], "little")
    if start > file.nbytes:
        raise damaged(
            file.path, f"its header should end at byte {start}, the file at byte {file.nbytes}"
        )
    try:
        header = json.loads(file.map[_LENGTH_BYTES:start], object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise damaged(file.path, f"its header is not valid JSON ({error})") from error
    if not isinstance(header, dict):
        raise damaged(file.path, "its header is not a JSON object")
    return header, start


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    contents = dict(pairs)
    if len(contents) != len(pairs):
        raise ValueError("a name occurs twice")
    return contents


def _entry(path: Path, name: str, fields: Any) -> _Entry:
    try:
        dtype, shape, (start, stop) = fields["dtype"], fields["shape"], fields["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise damaged(path, f"the header's entry of {name!r} is {reprlib.repr(fields)}") from error
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise CheckpointError(
            f"{path}: tensor {name!r} has type {dtype!r}; known are {', '.join(_DTYPES)}. Take a "
            "checkpoint in one of these types."
        )
    counts = [*shape, start, stop] if isinstance(shape, list) else [None]
    if not all(type(count) is int and count >= 0 for count in counts):
        raise damaged(path, f"the header's entry of {name!r} is {reprlib.repr(fields)}")
    if stop - start != math.prod(shape) * _DTYPES[dtype].itemsize:
        raise damaged(path, f"tensor {name!r} of shape {shape} has {stop - start} bytes")
    return _Entry(start, stop, name, _DTYPES[dtype], tuple(shape))


def _check_spans(path: Path, entries: list[_Entry], nbytes: int) -> None:
    """Tensors must lie end to end, without overlap or gap, and fill the file."""
    position = 0
    for entry in entries:
        if entry.start != position:
            what = "overlaps the one before it" if entry.start < position else "follows a gap"
            raise damaged(path, f"tensor {entry.name!r} {what}")
        position = entry.stop
    if position != nbytes:
        raise damaged(path, f"its tensors should take {position} bytes, but there are {nbytes}")
