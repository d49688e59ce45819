"""How a job that was killed goes on: what is on the disk, and whether it is of the same job."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ... import OptionError
from .journal import Journal, replace, sync_folder

SAMPLE = 2**20
"""Bytes at each end of the input that its digest is of."""
_BEGIN_ANEW = "--overwrite (in Python overwrite=True) to begin anew"


def input_settings(path: Path) -> dict[str, Any]:
    """What tells an input from others, without reading all of it. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(file.read(SAMPLE))
        file.seek(max(size - SAMPLE, 0))
        digest.update(file.read(SAMPLE))
    return {"input size": size, "input digest": digest.hexdigest()}


@dataclasses.dataclass(frozen=True, slots=True)
class Files:
    """The files of a job."""

    output: Path
    journal: Path
    """Where answers go as they come: the output itself, if that is of lines."""
    state: Path
    """There from the first answer to the last: the settings that it was begun with."""

    @classmethod
    def of(cls, output: Path, *, lines: bool) -> "Files":
        """Those beside an output, of lines or in Parquet."""
        journal = output if lines else output.with_name(f"{output.name}.results.jsonl")
        return cls(output, journal, output.with_name(f"{output.name}.state.json"))


def check(files: Files, settings: Mapping[str, Any], *, overwrite: bool) -> bool:
    """Whether there is a run of the same job to go on with. Changes nothing.

    Raises OptionError where there is something that would be lost.
    """
    if overwrite:
        return False
    before = _read(files.state)
    if before is None:
        if _has_content(files.output):
            raise OptionError(
                f"{files.output} is there, and not of a run that can go on. Give another output, "
                f"or {_BEGIN_ANEW}."
            )
        return False
    changes = _changes(before, settings)
    if changes and _has_content(files.journal):
        raise OptionError(
            f"{files.output} was begun with other settings: {'; '.join(changes)}. Give the same "
            f"ones to go on behind what is answered, or {_BEGIN_ANEW}."
        )
    return not changes


def begin(
    files: Files,
    settings: Mapping[str, Any],
    journal: Journal,
    *,
    resumed: bool,
) -> None:
    """From here on the journal is of a run with these settings.

    In this order a kill in between leaves no state beside lines of another run.
    """
    if resumed:
        return
    files.state.unlink(missing_ok=True)
    sync_folder(files.state)
    journal.clear()
    if files.output != files.journal:
        files.output.unlink(missing_ok=True)
    temporary = files.state.with_name(f"{files.state.name}.tmp")
    temporary.write_text(json.dumps(settings, indent=1) + "\n")
    replace(files.state, temporary)


def finish(files: Files, write: Callable[[], None]) -> None:
    """Leaves the output alone, which `write` makes where the journal is another file."""
    if files.output != files.journal:
        write()
    files.state.unlink(missing_ok=True)
    sync_folder(files.state)
    if files.output != files.journal:
        files.journal.unlink()


def _read(state: Path) -> dict[str, Any] | None:
    try:
        return json.loads(state.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise OptionError(
            f"{state} cannot be read: {error}. Bring it back, or give {_BEGIN_ANEW}."
        ) from error


def _has_content(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A text for each setting that is another."""
    each = {name: (_shown(before, name), _shown(now, name)) for name in {**before, **now}}
    changed = {name: shown for name, shown in each.items() if shown[0] != shown[1]}
    if any(name.startswith("input") for name in changed):
        return ["the input has changed"]
    return [f"{name} was {was} and is {now}" for name, (was, now) in changed.items()]


def _shown(settings: Mapping[str, Any], name: str) -> str:
    return repr(settings[name]) if name in settings else "not given"
