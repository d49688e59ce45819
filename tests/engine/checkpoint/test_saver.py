import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quire.engine.checkpoint import load_params, read_config, resolve_dtype, save_params
from quire.errors import CheckpointError, ModelConfigError
from quire.models.checkpoint_map import CheckpointMap

COMPANIONS = {
    "config.json": '{"hidden_size": 4, "torch_dtype": "float32"}',
    "generation_config.json": "{}",
    "tokenizer.json": '{"model": 1}',
    "tokenizer.model": "x",
    "chat_template.jinja": "{{ messages }}",
    "additional_chat_templates/tools.jinja": "{{ tools }}",
}
OTHERS = ("model.safetensors", "pytorch_model.bin.index.json", "README.md", "original/params.json")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    for name, contents in (COMPANIONS | dict.fromkeys(OTHERS, "weights")).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(contents)
    return folder


@pytest.fixture
def params() -> dict[str, jax.Array]:
    return {"embed.table": jnp.arange(8, dtype=jnp.bfloat16), "norm": jnp.ones(2, jnp.float32)}


def test_a_saved_checkpoint_is_complete(
    tmp_path: Path, source: Path, params: dict[str, jax.Array]
) -> None:
    target = tmp_path / "new" / "target"
    save_params(target, params, source)
    files = {f.relative_to(target).as_posix() for f in target.rglob("*") if f.is_file()}
    assert {name for name in files if not name.startswith("quire_params/")} == COMPANIONS.keys()
    for name in COMPANIONS.keys() - {"config.json"}:
        assert (target / name).read_text() == COMPANIONS[name]
    shapes = {n: jax.ShapeDtypeStruct(a.shape, a.dtype) for n, a in params.items()}
    loaded = load_params(target, shapes, CheckpointMap(()), progress=False)
    for name, array in params.items():
        np.testing.assert_array_equal(loaded[name], array, strict=True)


def test_the_config_says_the_type_of_the_parameters(
    tmp_path: Path, source: Path, params: dict[str, jax.Array]
) -> None:
    save_params(tmp_path / "target", params, source)
    config = read_config(tmp_path / "target")
    assert config == {"hidden_size": 4, "dtype": "bfloat16"}
    assert resolve_dtype("auto", config, "cpu") == jnp.bfloat16


def test_a_saved_checkpoint_can_be_saved_again(
    tmp_path: Path, source: Path, params: dict[str, jax.Array]
) -> None:
    save_params(tmp_path / "first", params, source)
    save_params(tmp_path / "second", params, tmp_path / "first")
    assert read_config(tmp_path / "second") == read_config(tmp_path / "first")


def test_nothing_is_overwritten(tmp_path: Path, source: Path, params: dict[str, jax.Array]) -> None:
    for target in (source, source / "config.json"):
        with pytest.raises(CheckpointError, match="nothing is overwritten. Give a new path"):
            save_params(target, params, source)
    assert json.loads((source / "config.json").read_text())["torch_dtype"] == "float32"
    assert not (source / "quire_params").exists()
    empty = tmp_path / "empty"
    empty.mkdir()
    save_params(str(empty), params, source)
    assert (empty / "quire_params").is_dir()


def test_a_source_without_config(tmp_path: Path, params: dict[str, jax.Array]) -> None:
    (tmp_path / "source").mkdir()
    with pytest.raises(ModelConfigError, match=r"has no config\.json"):
        save_params(tmp_path / "target", params, tmp_path / "source")
    assert not (tmp_path / "target").exists()


def test_a_place_that_cannot_be_written(
    tmp_path: Path, source: Path, params: dict[str, jax.Array]
) -> None:
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_params(source / "tokenizer.json" / "x", params, source)
