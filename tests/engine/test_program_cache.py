"""Traced programs on disk: read where they fit, made anew where they do not."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from quire.engine.program_cache import ProgramCache

SHAPE = jax.ShapeDtypeStruct((3,), jnp.float32)


class Counted:
    """Doubles, and counts how often it was traced."""

    def __init__(self) -> None:
        self.traces = 0
        self.jitted = jax.jit(self._double)

    def _double(self, x: jax.Array) -> jax.Array:
        self.traces += 1
        return x * 2


def lower(folder: Path | None, *, identity: object = "model", key: str = "key") -> int:
    """How often a program was traced to be lowered; checks that it computes the right thing."""
    function = Counted()
    [lowered] = ProgramCache(folder, (identity,)).lower(key, function.jitted, (), (SHAPE,))
    assert lowered.compile()(jnp.arange(3.0)).tolist() == [0, 2, 4]
    return function.traces


def test_a_program_is_traced_once(tmp_path: Path) -> None:
    assert lower(tmp_path / "new") == 1
    assert lower(tmp_path / "new") == 0
    assert lower(None) == 1


def test_another_model_or_key_is_another_program(tmp_path: Path) -> None:
    assert [lower(tmp_path, identity=name) for name in ("one", "two")] == [1, 1]
    assert lower(tmp_path, identity="one", key="other") == 1


@pytest.mark.parametrize("damage", [b"", b"no flatbuffer", None])
def test_a_damaged_file_is_made_anew(tmp_path: Path, damage: bytes | None) -> None:
    lower(tmp_path)
    [path] = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-100] if damage is None else damage)
    assert lower(tmp_path) == 1
    assert lower(tmp_path) == 0


def test_a_folder_that_cannot_be_written_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert lower(tmp_path / "file") == 1
    assert (tmp_path / "file").read_text() == "in the way"
