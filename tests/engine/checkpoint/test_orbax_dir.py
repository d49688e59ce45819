import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quire.engine.checkpoint import load_params
from quire.engine.checkpoint.orbax_dir import load_orbax, save_orbax
from quire.errors import CheckpointError
from quire.models.checkpoint_map import CheckpointMap

Params = dict[str, jax.Array]

LOAD = """
import sys
from pathlib import Path
import jax
from quire.engine.checkpoint import load_params
from quire.errors import CheckpointError
from quire.models.checkpoint_map import CheckpointMap

try:
    load_params(Path(sys.argv[1]), {"w": jax.ShapeDtypeStruct((2, 3), "f4")}, CheckpointMap(()))
except CheckpointError as error:
    print(error)
"""


@pytest.fixture
def params() -> Params:
    return {
        "layers.0.attention.qkv": jnp.arange(24, dtype=jnp.bfloat16).reshape(2, 3, 4),
        "layers.10.attention.qkv": jnp.ones((2, 3, 4), jnp.bfloat16),
        "embed": jnp.arange(6, dtype=jnp.float32).reshape(3, 2),
        "scale": jnp.float32(3),
    }


def shapes_of(params: Params, dtype: object = None) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        name: jax.ShapeDtypeStruct(array.shape, dtype or array.dtype)
        for name, array in params.items()
    }


def load(folder: Path, shapes: dict[str, jax.ShapeDtypeStruct]) -> Params:
    return load_params(folder, shapes, CheckpointMap(()), progress=False)


def test_what_is_saved_is_loaded(tmp_path: Path, params: Params) -> None:
    save_orbax(tmp_path, params)
    loaded = load(tmp_path, shapes_of(params))
    assert list(loaded) == list(params)
    for name, array in params.items():
        np.testing.assert_array_equal(loaded[name], array, strict=True)


def test_types_are_converted_on_the_way(tmp_path: Path, params: Params) -> None:
    save_orbax(tmp_path, params)
    loaded = load(tmp_path, shapes_of(params, jnp.float16))
    for name, array in params.items():
        np.testing.assert_array_equal(loaded[name], array.astype(jnp.float16), strict=True)


def test_each_parameter_gets_its_sharding(tmp_path: Path, params: Params) -> None:
    save_orbax(tmp_path, params)
    mesh = jax.make_mesh((1,), ("x",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    loaded = load_orbax(tmp_path, shapes_of(params), dict.fromkeys(params, split))
    assert all(array.sharding == split for array in loaded.values())


def test_in_a_running_event_loop(tmp_path: Path, params: Params) -> None:
    """As in a notebook."""

    async def cell() -> Params:
        save_orbax(tmp_path, params)
        return load(tmp_path, shapes_of(params))

    assert asyncio.run(cell()).keys() == params.keys()


def test_relative_paths(tmp_path: Path, params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_orbax(Path("here"), params)
    assert load(Path("here"), shapes_of(params)).keys() == params.keys()


def test_all_differences_are_in_one_error(tmp_path: Path, params: Params) -> None:
    save_orbax(tmp_path, params)
    shapes = shapes_of(params)
    del shapes["scale"]
    shapes["norm"] = jax.ShapeDtypeStruct((4,), jnp.float32)
    shapes["embed"] = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    shapes["layers.10.attention.qkv"] = jax.ShapeDtypeStruct((2, 3, 4), jnp.int8)
    with pytest.raises(CheckpointError, match="does not fit the model") as caught:
        load(tmp_path, shapes)
    text = str(caught.value)
    assert "missing from the checkpoint (1): norm" in text
    assert "the model does not have (1): scale" in text
    assert "embed is float32[3, 2], the model needs float32[2, 3]" in text
    assert "layers.10.attention.qkv is bfloat16[2, 3, 4], the model needs int8[2, 3, 4]" in text


def test_a_damaged_description(tmp_path: Path, params: Params) -> None:
    save_orbax(tmp_path, params)
    path = tmp_path / "quire_params" / "_METADATA"
    path.write_bytes(path.read_bytes()[:7])
    with pytest.raises(CheckpointError, match="quire_params is damaged"):
        load(tmp_path, shapes_of(params))


@pytest.mark.parametrize("lost", ["d", "manifest.ocdbt"])
def test_damaged_data(tmp_path: Path, run_python: Callable[..., str], lost: str) -> None:
    """In a process of its own, as TensorStore's threads complain later about what failed."""
    save_orbax(tmp_path, {"w": jnp.ones((2, 3))})
    path = tmp_path / "quire_params" / lost
    shutil.rmtree(path) if path.is_dir() else path.write_bytes(path.read_bytes()[:7])
    assert "quire_params is damaged" in run_python(LOAD, str(tmp_path))


def test_an_empty_folder(tmp_path: Path, params: Params) -> None:
    (tmp_path / "quire_params").mkdir()
    with pytest.raises(CheckpointError, match="no complete Orbax checkpoint"):
        load(tmp_path, shapes_of(params))
