"""A file of JSON lines that is only appended to, and survives whatever kills its writer."""

import fcntl
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ... import OptionError


class Journal:
    """Whole lines, in order, of one writer at a time."""

    def __init__(self, path: Path) -> None:
        """Opens or makes the file. Raises OptionError where it cannot, or where another writes."""
        self._path, self._made = path, not path.exists()
        try:
            self._file = path.open("a+b")
        except OSError as error:
            raise OptionError(f"{path} cannot be written: {error}.") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise OptionError(f"another process is writing {path}. Wait for its end.") from error
        except OSError:
            pass  # of file systems without locks
        self.rows = 0
        """Lines that are there for good."""

    def recover(self, failed: Callable[[dict[str, Any]], bool]) -> int:
        """Counts the lines up to the first that is not whole, and cuts off what follows.

        Returns how many of them have `failed`.
        """
        errors = end = 0
        self._file.seek(0)
        for line in self._file:
            if (fields := _whole(line)) is None:
                break
            errors += failed(fields)
            self.rows += 1
            end += len(line)
        self._cut(end)
        return errors

    def clear(self) -> None:
        """Forgets all lines."""
        self.rows = 0
        self._cut(0)

    def append(self, lines: Sequence[bytes]) -> None:
        """Adds lines, each with its end; they are on the disk when this returns."""
        self._file.write(b"".join(lines))
        self._sync()
        self.rows += len(lines)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and self._made and os.fstat(self._file.fileno()).st_size == 0:
            self._path.unlink(missing_ok=True)  # the job did not begin
        self._file.close()

    def _cut(self, end: int) -> None:
        self._file.truncate(end)
        self._sync()

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())


def _whole(line: bytes) -> dict[str, Any] | None:
    """The object of a line; None where it is torn."""
    try:
        fields = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None


def sync_folder(path: Path) -> None:
    """Puts on the disk which files the folder of `path` has."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def replace(path: Path, temporary: Path) -> None:
    """Puts the file `temporary` in place of `path`, whole or not at all."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path)
