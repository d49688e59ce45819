"""A file of weights mapped into memory, and the tensors that lie in it."""

import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...errors import CheckpointError
from .problems import damaged

_LFS_POINTER = b"version https://git-lfs"


class MappedFile:
    """A file mapped read-only. Nothing of it is read before somebody looks at an array."""

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError where `path` cannot be opened or is an empty or stand-in file."""
        self.path = path
        try:
            with path.open("rb") as file:
                self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # an empty file is a ValueError
            raise damaged(path, str(error)) from error
        if self.map[: len(_LFS_POINTER)] == _LFS_POINTER:
            raise CheckpointError(
                f"{path} is a Git LFS pointer, not the weights themselves. Run `git lfs pull` in "
                "its folder, or download the file again."
            )
        self._address = np.frombuffer(self.map, np.uint8).ctypes.data

    @property
    def nbytes(self) -> int:
        return len(self.map)

    def view(
        self,
        dtype: np.dtype,
        shape: Sequence[int],
        offset: int,
        strides: Sequence[int] | None = None,
    ) -> np.ndarray:
        """A read-only array of the bytes from `offset` on; `strides` in bytes, None for dense.

        Raises CheckpointError where the file does not hold all of it.
        """
        if offset < 0:  # numpy takes it, and would read what lies before the file
            raise damaged(self.path, f"a tensor begins at byte {offset}")
        try:
            return np.ndarray(shape, dtype, self.map, offset, strides)
        except (ValueError, TypeError, OverflowError) as error:
            raise damaged(self.path, f"a tensor of shape {list(shape)}: {error}") from error

    def release(self, array: np.ndarray) -> None:
        """Gives the memory of a view's pages back; whoever uses it again reads the file again."""
        if array.size == 0 or not hasattr(self.map, "madvise"):
            return
        low, high = np.lib.array_utils.byte_bounds(array)
        start = (low - self._address) // mmap.PAGESIZE * mmap.PAGESIZE
        self.map.madvise(mmap.MADV_DONTNEED, start, high - self._address - start)


class StoredTensor(NamedTuple):
    """A tensor of a checkpoint: a view of the file that holds it."""

    array: np.ndarray
    file: MappedFile
