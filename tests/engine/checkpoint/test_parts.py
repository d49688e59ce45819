"""Parts of models that are models of their own. No test here reaches a network."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save_file

from quire.engine.checkpoint import (
    Source,
    find_parts,
    joined,
    read_generation_config,
    read_preprocessor_config,
    save_params,
)
from quire.engine.checkpoint.parts import open_joined
from quire.errors import CheckpointError, ModelConfigError, UnsafeCheckpointError
from quire.models.checkpoint_map import CheckpointMap, Piece
from quire.models.part import Part

TEXT = Part("text_model_id", "text_config", "language_model.", ("model.",))
AUDIO = Part("audio_model_id", "audio_config", "audio_tower.", ("audio_tower.",))
PARTS = {"text": TEXT, "audio": AUDIO}
MAP = CheckpointMap(
    tuple(Piece(name, name) for name in ("model.a", "model.b", "audio_tower.c", "mine")),
    canonical=lambda name: name.removeprefix("language_model."),
)


def model(folder: Path, config: dict[str, Any], **files: str) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    for name, contents in files.items():
        (folder / f"{name}.json").write_text(contents)
    return folder


def weights(folder: Path, **tensors: float) -> None:
    arrays = {n.replace("__", "."): np.full(2, value, np.float32) for n, value in tensors.items()}
    save_file(arrays, folder / "model.safetensors")


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, Any]:
    """A config whose parts are in the folders `text` and `audio`, beside the folder `main`."""
    model(tmp_path / "text", {"size": 4, "layers": 2})
    model(tmp_path / "audio", {"size": 8})
    ids = {f"{name}_model_id": str(tmp_path / name) for name in PARTS}
    model(tmp_path / "main", ids)
    return ids


def test_models_that_have_all_in_themselves(tmp_path: Path) -> None:
    config = {"text_model_id": None, "text_config": {"size": 4}}
    assert find_parts(PARTS, config, None) == {}
    assert joined(config, ()) == config
    assert Source(tmp_path, {}).folders("text") == (tmp_path,)


def test_fields_of_a_part_and_those_that_are_given(tmp_path: Path, whole: dict[str, Any]) -> None:
    whole |= {"stack": 3, "text_config": {"layers": 1}}
    parts = find_parts(PARTS, whole, None)
    assert joined(whole, parts.values()) == {
        "stack": 3,
        "text_model_id": None,
        "text_config": {"size": 4, "layers": 1},
        "audio_model_id": None,
        "audio_config": {"size": 8},
    }
    source = Source(tmp_path, parts)
    assert source.folders("text") == (tmp_path, tmp_path / "text")
    assert source.folders("image") == (tmp_path,)


def opened(folder: Path, whole: dict[str, Any]) -> dict[str, float]:
    """The tensors of the model and its parts, by canonical names."""
    parts = find_parts(PARTS, whole, None)
    tensors = open_joined(folder, MAP, parts.values())
    names = [MAP.canonical(name) for name in tensors]
    assert len(names) == len(set(names))
    return {MAP.canonical(name): float(t.array[0]) for name, t in tensors.items()}


def test_tensors_of_parts_and_its_own_before_theirs(tmp_path: Path, whole: dict[str, Any]) -> None:
    weights(tmp_path / "main", mine=1, model__a=2)
    weights(tmp_path / "text", model__a=3, model__b=4)
    weights(tmp_path / "audio", c=5, d=6)
    assert opened(tmp_path / "main", whole) == {
        "mine": 1,
        "model.a": 2,
        "model.b": 4,
        "audio_tower.c": 5,
        "audio_tower.d": 6,
    }


def test_parts_of_which_nothing_is_missing_are_not_opened(
    tmp_path: Path, whole: dict[str, Any]
) -> None:
    weights(tmp_path / "main", mine=1, language_model__model__a=2, model__b=3)
    weights(tmp_path / "audio", c=5)
    assert set(opened(tmp_path / "main", whole)) == {"mine", "model.a", "model.b", "audio_tower.c"}


def test_parts_are_read_without_running_code(
    tmp_path: Path, whole: dict[str, Any], write_zip: Callable[..., None]
) -> None:
    weights(tmp_path / "main", mine=1, audio_tower__c=2)
    write_zip(tmp_path / "text" / "pytorch_model.bin", {}, pickle=b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(UnsafeCheckpointError, match=r"asks for os\.system"):
        opened(tmp_path / "main", whole)


def test_files_of_parts_that_a_folder_lacks(tmp_path: Path) -> None:
    main, audio = model(tmp_path / "main", {}), model(tmp_path / "audio", {})
    (main / "processor_config.json").write_text('{"audio_padding": "longest"}')
    (audio / "preprocessor_config.json").write_text('{"feature_size": 80}')
    (audio / "generation_config.json").write_text('{"top_k": 3}')
    assert read_preprocessor_config("audio", main, audio) == {"feature_size": 80}
    assert read_generation_config(main, audio) == {"top_k": 3}
    (main / "preprocessor_config.json").write_text('{"feature_size": 128}')
    (main / "generation_config.json").write_text("{}")
    assert read_preprocessor_config("audio", main, audio) == {"feature_size": 128}
    assert read_generation_config(main, audio) == {}
    (main / "preprocessor_config.json").unlink()
    with pytest.raises(ModelConfigError, match=r"main has no preprocessor_config\.json.*'audio'"):
        read_preprocessor_config("audio", tmp_path / "main", model(tmp_path / "none", {}))


@pytest.mark.parametrize("own", [{}, {"tokenizer": "own"}])
def test_a_saved_checkpoint_has_the_files_of_its_parts(
    tmp_path: Path, whole: dict[str, Any], own: dict[str, str]
) -> None:
    """A tokenizer is taken whole or not at all, and of audio what prepares sounds."""
    import jax.numpy as jnp

    main, text, audio = (tmp_path / name for name in ("main", "text", "audio"))
    for name, contents in own.items():
        (main / f"{name}.json").write_text(contents)
    others = ("tokenizer", "tokenizer_config", "generation_config", "preprocessor_config")
    for folder in (text, audio):
        for name in others:
            (folder / f"{name}.json").write_text(folder.name)
    parts = find_parts(PARTS, whole, None)
    save_params(tmp_path / "saved", {"mine": jnp.ones(2)}, main, parts)
    files = {path.stem: path.read_text() for path in (tmp_path / "saved").glob("*.json")}
    config = json.loads(files.pop("config"))
    assert config == joined(whole, parts.values()) | {"dtype": "float32"}
    expected = {"generation_config": "text", "preprocessor_config": "audio"}
    tokenizer = own or {"tokenizer": "text", "tokenizer_config": "text"}
    assert files == expected | tokenizer


@pytest.mark.parametrize("given", [3, "", {"id": "x"}])
def test_what_names_no_model(given: Any) -> None:
    with pytest.raises(ModelConfigError, match=r"'text_model_id' .* must be a folder or the id"):
        find_parts(PARTS, {"text_model_id": given}, None)


def test_parts_that_are_not_to_be_had(tmp_path: Path, whole: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"audio_model_id='a/b/c', .*no repository's id\..*"):
        find_parts(PARTS, whole | {"audio_model_id": "a/b/c"}, None)
    (tmp_path / "text" / "config.json").unlink()
    with pytest.raises(ModelConfigError, match=r"text has no config\.json"):
        joined(whole, find_parts(PARTS, whole, None).values())
    model(tmp_path / "other", {})
    whole |= {"text_config": [], "text_model_id": str(tmp_path / "other")}
    with pytest.raises(ModelConfigError, match=r"'text_config' .* is \[\]; it must be an object"):
        joined(whole, find_parts(PARTS, whole, None).values())


def test_weights_are_downloaded_where_some_are_missing(
    tmp_path: Path, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the main revision; configs first."""
    asked: list[tuple[str, Any, list[str]]] = []

    def download(repository: str, **options: Any) -> str:
        asked.append((repository, options["revision"], options["allow_patterns"]))
        assert options["cache_dir"] == "/d"
        return str(tmp_path / repository.partition("/")[2])

    files = ["config.json", "tokenizer.json", "model.safetensors", "README.md"]
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *a, **k: files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("QUIRE_USE_MODELSCOPE", raising=False)
    monkeypatch.delenv("VLLM_USE_MODELSCOPE", raising=False)
    weights(tmp_path / "main", mine=1, audio_tower__c=2)
    weights(tmp_path / "text", model__a=3, model__b=4)
    ids = {f"{name}_model_id": f"some/{name}" for name in PARTS}
    parts = find_parts(PARTS, ids, "/d")
    assert asked == [(f"some/{name}", None, files[:2]) for name in PARTS]
    assert len(open_joined(tmp_path / "main", MAP, parts.values())) == 4
    assert asked[2:] == [("some/text", None, files[:3])]
