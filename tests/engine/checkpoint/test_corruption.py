"""Files with random damage end in a CheckpointError or load; nothing else happens."""

import functools
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from quire.engine.checkpoint.mapped_file import StoredTensor
from quire.engine.checkpoint.safetensors_file import open_safetensors
from quire.engine.checkpoint.torch_file import open_torch_file
from quire.errors import CheckpointError

SMALL = {"a": np.arange(6, dtype=np.float16).reshape(2, 3), "b": np.arange(3), "c": np.ones(())}
Open = Callable[[Path], dict[str, StoredTensor]]

damage = st.lists(
    st.tuples(
        st.sampled_from(["cut", "change", "insert", "delete", "repeat"]),
        st.integers(0, 2**16),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=4,
)


def damaged(contents: bytes, changes: list[tuple[str, int, bytes]]) -> bytes:
    for kind, where, new in changes:
        at = where % (len(contents) + 1)
        head, tail, rest = contents[:at], contents[at:], contents[at + len(new) :]
        contents = {
            "cut": head,
            "change": head + new + rest,
            "insert": head + new + tail,
            "delete": head + rest,
            "repeat": head + contents[at // 2 : at] + tail,
        }[kind]
    return contents


# pickle reports a name that it looks up itself; the restricted unpickler never lets it
FORBIDDEN = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen")


@functools.cache
def watched() -> list[str]:
    """A list that, while it is not empty, gets every forbidden event of the interpreter."""
    seen: list[str] = []

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if seen and event in FORBIDDEN:
            seen.append(event)

    sys.addaudithook(hook)
    return seen


def opens_or_refuses(open_file: Open, path: Path) -> None:
    seen = watched()
    seen.append("watching")
    try:
        for tensor in open_file(path).values():
            tensor.array.tobytes() if tensor.array.nbytes < 2**20 else None
    except CheckpointError:
        pass
    finally:
        events = seen[1:]
        seen.clear()
    assert events == []


@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
def test_random_damage(tmp_path: Path, form: str, request: pytest.FixtureRequest) -> None:
    path = tmp_path / "weights"
    request.getfixturevalue(f"write_{form}")(path, SMALL)
    whole = path.read_bytes()
    open_file = open_safetensors if form == "safetensors" else open_torch_file
    open_file(path)

    @settings(max_examples=600, deadline=None, derandomize=True, database=None)
    @given(damage)
    def check(changes: list[tuple[str, int, bytes]]) -> None:
        path.write_bytes(damaged(whole, changes))
        opens_or_refuses(open_file, path)

    check()


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_random_damage_in_a_sound_file(
    tmp_path: Path, form: str, request: pytest.FixtureRequest
) -> None:
    """Here the damage always reaches the unpickler."""
    path = tmp_path / "weights"
    request.getfixturevalue("write_zip")(path, SMALL)
    pickle = zipfile.ZipFile(path).read("archive/data.pkl")
    write = request.getfixturevalue(f"write_{form}")

    @settings(max_examples=1000, deadline=None, derandomize=True, database=None)
    @given(damage)
    def check(changes: list[tuple[str, int, bytes]]) -> None:
        write(path, SMALL, pickle=damaged(pickle, changes))
        opens_or_refuses(open_torch_file, path)

    check()
