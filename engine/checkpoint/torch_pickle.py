"""Reads the pickle inside a PyTorch file without ever running anything that it names.

A pickle is a program that may call any function it can name. Here every name it asks for is
looked up in a table of a few stand-ins, which only describe tensors; no module is imported, and
no class of Python is handed out. The stand-ins are tuples, so a pickle cannot change them either.
"""

import pickle
import pickletools
import reprlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn, Protocol, cast

import ml_dtypes
import numpy as np

from ...errors import CheckpointError, UnsafeCheckpointError
from .problems import damaged

_MAX_DIMS = 64


class Stream(Protocol):
    """A binary file that can be read and sought; a `mmap.mmap` is one."""

    def read(self, n: int = ..., /) -> bytes: ...
    def readline(self) -> bytes: ...
    def tell(self) -> int: ...
    def seek(self, pos: int, /) -> object: ...


class Storage(NamedTuple):
    """A run of `size` elements, saved beside the pickle under `key`."""

    key: str
    dtype: np.dtype
    size: int

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize


class TensorRef(NamedTuple):
    """A tensor that is part of a storage; offset and strides count elements of `dtype`."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _DType(NamedTuple):
    """Stands in for a storage class or a torch.dtype."""

    dtype: np.dtype


class _Function(NamedTuple):
    """Stands in for a function or class that the pickle calls."""

    function: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)


class _StateDict(dict[Any, Any]):
    """Stands in for an OrderedDict. Attributes a pickle would set on it are dropped."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        """Module versions arrive here (`_metadata`); they say nothing about tensors."""


def _tensor(
    storage: object,
    offset: object,
    shape: object,
    strides: object,
    requires_grad: object = False,
    backward_hooks: object = None,
    metadata: object = None,
) -> TensorRef:
    if not isinstance(storage, Storage) or metadata:
        raise ValueError(f"a tensor of {storage!r} with {metadata!r}")
    return _checked(storage, storage.dtype, offset, shape, strides)


def _tensor_of_dtype(
    storage: object,
    offset: object,
    shape: object,
    strides: object,
    requires_grad: object,
    backward_hooks: object,
    dtype: object,
    metadata: object = None,
) -> TensorRef:
    """Types younger than the storage classes lie in storages of bytes and name their type."""
    if not isinstance(storage, Storage) or not isinstance(dtype, _DType) or metadata:
        raise ValueError(f"a tensor of {storage!r} and {dtype!r} with {metadata!r}")
    return _checked(storage, dtype.dtype, offset, shape, strides)


def _checked(
    storage: Storage, dtype: np.dtype, offset: object, shape: object, strides: object
) -> TensorRef:
    sizes, steps = _counts(shape), _counts(strides)
    (start,) = _counts((offset,))
    if len(sizes) != len(steps) or len(sizes) > _MAX_DIMS:
        raise ValueError(f"a tensor of shape {sizes} and strides {steps}")
    last = start + sum((size - 1) * step for size, step in zip(sizes, steps, strict=True))
    if 0 not in sizes and (last + 1) * dtype.itemsize > storage.nbytes:
        raise ValueError(f"a tensor of shape {sizes} beyond its storage of {storage.size}")
    return TensorRef(storage, dtype, start, sizes, steps)


def _counts(value: object) -> tuple[int, ...]:
    if not isinstance(value, tuple) or not all(_is_count(v) for v in value):
        raise ValueError(f"{value!r} where a tuple of counts belongs")
    return value


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= sys.maxsize


def _parameter(data: object, requires_grad: object = True, backward_hooks: object = None) -> object:
    return data


def _size(counts: Iterable[Any] = ()) -> tuple[Any, ...]:
    return tuple(counts)


_STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
    "UntypedStorage": np.uint8,
}

_DTYPES = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "int64": np.int64,
    "int32": np.int32,
    "int16": np.int16,
    "int8": np.int8,
    "uint64": np.uint64,
    "uint32": np.uint32,
    "uint16": np.uint16,
    "uint8": np.uint8,
    "bool": np.bool_,
}

_GLOBALS: dict[tuple[str, str], _DType | _Function] = {
    ("collections", "OrderedDict"): _Function(_StateDict),
    ("torch", "Size"): _Function(_size),
    ("torch._utils", "_rebuild_tensor"): _Function(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_tensor),
    ("torch._utils", "_rebuild_tensor_v3"): _Function(_tensor_of_dtype),
    ("torch._utils", "_rebuild_parameter"): _Function(_parameter),
    ("torch.storage", "UntypedStorage"): _DType(np.dtype(np.uint8)),
    **{("torch", name): _DType(np.dtype(dtype)) for name, dtype in (_STORAGES | _DTYPES).items()},
}


class RestrictedUnpickler(pickle.Unpickler):
    """An unpickler that knows tensors and plain containers, and refuses every other name."""

    def __init__(self, stream: Stream, path: Path) -> None:
        super().__init__(stream, encoding="utf-8")
        self._path = path
        self.storages: dict[str, Storage] = {}
        """Every storage the pickle named, by key."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        found = _GLOBALS.get((module_name, global_name))
        if found is None:
            _refuse(self._path, f"asks for {module_name}.{global_name}")
        return found

    def persistent_load(self, pid: Any) -> Storage:
        """A storage: ("storage", type, key, device, elements), in legacy files with a None."""
        match pid:
            case ("storage", _DType(dtype), str(key), str(), size, *views) if _is_count(size):
                storage = Storage(key, dtype, size)
            case _:
                raise ValueError(f"{pid!r} where a storage belongs")
        if views not in ([], [None]):
            raise ValueError(f"a view {views!r} of a storage, which torch no longer writes")
        if self.storages.setdefault(key, storage).nbytes != storage.nbytes:
            raise ValueError(f"two sizes of storage {key}")
        return storage


def _refuse(path: Path, what: str) -> NoReturn:
    raise UnsafeCheckpointError(
        f"{path} {what}, which is not a tensor and could run code, so it was not loaded. Use a "
        "safetensors version of these weights, or one that holds nothing but a state dict."
    )


def unpickle(stream: Stream, path: Path) -> tuple[Any, dict[str, Storage]]:
    """The next object of `stream`, which is left after it, and the storages it named.

    Raises:
        CheckpointError: the pickle is damaged.
        UnsafeCheckpointError: it asks for something other than tensors and containers.
    """
    try:
        _check_operations(stream, path)
        unpickler = RestrictedUnpickler(stream, path)
        return unpickler.load(), unpickler.storages
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle can fail with any of Python's errors
        raise damaged(path, f"its pickle cannot be read ({error!r})") from error


def _check_operations(stream: Stream, path: Path) -> None:
    """Refuses operations that pass `find_class` by or ask for memory without limit."""
    start = stream.tell()
    for operation, argument, _ in pickletools.genops(cast(IO[bytes], stream)):
        if operation.name.startswith("EXT"):
            _refuse(path, f"uses the extension registry ({operation.name} {argument})")
        # the unpickler's memo is an array as long as the largest index
        if operation.name.endswith("PUT") and int(argument or 0) > stream.tell():
            raise damaged(path, f"its pickle has the memo index {argument}")
    stream.seek(start)


def state_dict(contents: object, path: Path) -> dict[str, TensorRef]:
    """The tensors of an unpickled file: a dict of them, or one in "state_dict" or "model".

    Raises:
        CheckpointError: it is something else, or holds other things beside tensors.
    """
    for wrapper in ("state_dict", "model"):
        if isinstance(contents, dict) and isinstance(contents.get(wrapper), dict):
            contents = contents[wrapper]
    if not isinstance(contents, dict):
        raise damaged(path, f"it holds {type(contents).__name__}, not a state dict")
    for name, value in contents.items():
        if not isinstance(name, str) or not isinstance(value, TensorRef):
            raise CheckpointError(
                f"{path}: entry {reprlib.repr(name)} is {type(value).__name__}, not a tensor. Save "
                "the model's state dict alone."
            )
    return contents
