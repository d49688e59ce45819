"""Folders that PEFT saved, and everything that can be wrong with one. Nothing here downloads."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants

from quire.engine.adapter_files import read_adapter_folder
from quire.lora.adapter import Adapter
from quire.lora.errors import AdapterError
from quire.lora.request import LoRARequest
from tests.engine.checkpoint.conftest import write_zip as _write_zip
from tests.lora.conftest import FIXTURES, contents, load_adapter, load_model

write_zip = _write_zip
LLAMA = FIXTURES / "lora" / "llama2"
CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def read(path: object, **options: Any) -> Adapter:
    request = LoRARequest("sql", 1, str(path))
    return read_adapter_folder(request, load_model("llama2").base, **{"max_rank": 16, **options})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(LLAMA, tmp_path / "adapter"))


@pytest.fixture(autouse=True)
def _no_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QUIRE_USE_MODELSCOPE", raising=False)
    monkeypatch.delenv("VLLM_USE_MODELSCOPE", raising=False)


class Hub:
    """A repository that has the files of a folder, and what was asked of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = [path.name for path in folder.iterdir()]
        self.asked: list[tuple[str, Any]] = []
        self.downloads: list[dict[str, Any]] = []

    def list(self, repository: str, *, revision: str | None = None) -> list[str]:
        self.asked.append((repository, revision))
        return self.names

    def download(self, repository: str, **options: Any) -> str:
        self.downloads.append(options)
        return str(self.folder)


@pytest.fixture
def hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(folder)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        huggingface_hub.HfApi, "list_repo_files", lambda _, *a, **k: hub.list(*a, **k)
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.download)
    return hub


@pytest.mark.parametrize("name", [path.name for path in sorted((FIXTURES / "lora").iterdir())])
def test_folders_that_peft_saved(name: str) -> None:
    folder = FIXTURES / "lora" / name
    base = load_model(load_adapter(name).model).base
    request = LoRARequest(name, 1, str(folder))
    adapter = read_adapter_folder(request, base, max_rank=64)
    assert adapter.name == name
    assert adapter.parts


def test_a_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert contents(read(f"~/{folder.name}")) == contents(read(LLAMA))


def test_a_folder_hides_a_repository_of_its_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch, hub: Hub
) -> None:
    (folder.parent / "org").mkdir()
    shutil.copytree(folder, folder.parent / "org" / "sql")
    monkeypatch.chdir(folder.parent)
    assert read("org/sql").rank
    assert not hub.asked


def test_a_pickle_is_read_like_safetensors(folder: Path, write_zip: Callable[..., None]) -> None:
    expected = contents(read(folder))
    arrays = load_adapter("llama2").tensors
    (folder / WEIGHTS).unlink()
    write_zip(folder / PICKLE, {n: np.ascontiguousarray(a) for n, a in arrays.items()})
    assert contents(read(folder)) == expected


def test_safetensors_go_before_a_pickle(folder: Path) -> None:
    (folder / PICKLE).write_bytes(b"no pickle at all")
    assert contents(read(folder)) == contents(read(LLAMA))


def test_a_pickle_is_not_executed(folder: Path, write_zip: Callable[..., None]) -> None:
    (folder / WEIGHTS).unlink()
    program = b"cos\nsystem\n(S'touch executed'\ntR."
    write_zip(folder / PICKLE, {}, pickle=program)
    with pytest.raises(AdapterError, match=r"'sql' cannot be read.*asks for os\.system"):
        read(folder)


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ([CONFIG], rf"has no {CONFIG}; it holds {WEIGHTS}, expected.npz\. An adapter"),
        ([WEIGHTS], rf"has no {WEIGHTS} \(or {PICKLE}\); it holds {CONFIG}, expected"),
        ([CONFIG, WEIGHTS], rf"no {CONFIG} and no {WEIGHTS} \(or {PICKLE}\); it holds expected"),
        ([CONFIG, WEIGHTS, "expected.npz"], "it holds nothing.*folder that holds both"),
    ],
)
def test_missing_files(folder: Path, removed: list[str], message: str) -> None:
    for name in removed:
        (folder / name).unlink()
    with pytest.raises(AdapterError, match=message) as caught:
        read(folder)
    assert f"lora_path={str(folder)!r}" in str(caught.value)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"{", "cannot be read as JSON"),
        (b"\xff\xfe\x00", "cannot be read as JSON"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (b"[]", "holds a JSON list, not an object"),
        (b'{"peft_type": "IA3"}', "peft_type is 'IA3'"),
    ],
)
def test_a_bad_config(folder: Path, contents: bytes, message: str) -> None:
    (folder / CONFIG).write_bytes(contents)
    with pytest.raises(AdapterError, match=message):
        read(folder)


@pytest.mark.parametrize("contents", [b"", b"\xff" * 20, b"version https://git-lfs.github.com"])
def test_damaged_weights(folder: Path, contents: bytes) -> None:
    (folder / WEIGHTS).write_bytes(contents)
    with pytest.raises(AdapterError, match="'sql' cannot be read") as caught:
        read(folder)
    assert str(folder / WEIGHTS) in str(caught.value)


def test_a_config_that_is_a_folder(folder: Path) -> None:
    (folder / CONFIG).unlink()
    (folder / CONFIG).mkdir()
    with pytest.raises(AdapterError, match="cannot be read as JSON"):
        read(folder)


def test_a_rank_above_the_limit() -> None:
    with pytest.raises(AdapterError, match="ranks above max_lora_rank=1"):
        read(LLAMA, max_rank=1)


@pytest.mark.parametrize(
    "path", ["/no/such", "./a", "a/b/c", "name", "org/", "a b/c", "x" * 300, "a\0/b", "../x"]
)
def test_what_is_neither_folder_nor_id(path: str, hub: Hub) -> None:
    with pytest.raises(AdapterError, match=r"no folder on this machine, and no repos.*'org/name'"):
        read(path)
    assert not hub.asked


def test_a_file_is_no_adapter(folder: Path) -> None:
    with pytest.raises(AdapterError, match="no folder on this machine"):
        read(folder / WEIGHTS)


def test_a_repository_is_downloaded(hub: Hub, tmp_path: Path) -> None:
    hub.names += [PICKLE, "README.md"]
    assert contents(read("org/sql", download_dir=tmp_path, revision="v1")) == contents(read(LLAMA))
    assert hub.asked == [("org/sql", "v1")]
    assert hub.downloads == [
        {"revision": "v1", "cache_dir": tmp_path, "allow_patterns": [CONFIG, WEIGHTS]}
    ]


def test_the_pickle_of_a_repository_without_safetensors(hub: Hub) -> None:
    hub.names = [CONFIG, PICKLE]
    read("org/sql")
    assert hub.downloads[0]["allow_patterns"] == [CONFIG, PICKLE]


def test_a_repository_without_an_adapter(hub: Hub) -> None:
    hub.names = ["config.json", "model.safetensors"]
    with pytest.raises(AdapterError, match="but the repository has no.*it holds config.json, mod"):
        read("org/model")
    assert not hub.downloads


def test_a_download_that_fails(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(AdapterError, match="download failed .OSError: no space left"):
        read("org/sql")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache as huggingface_hub lays it out, with one adapter in it."""
    repository = tmp_path / "cache" / "models--org--sql"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    shutil.copytree(LLAMA, repository / "snapshots" / COMMIT)
    return tmp_path / "cache"


def test_offline_only_what_was_downloaded(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert contents(read("org/sql", download_dir=cache)) == contents(read(LLAMA))
    with pytest.raises(AdapterError, match=r"was not downloaded before.*HF_HUB_OFFLINE is set"):
        read("org/other", download_dir=cache)


def test_an_unreachable_hub_leaves_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", fail)
    assert contents(read("org/sql", download_dir=cache)) == contents(read(LLAMA))
    with pytest.raises(AdapterError, match="cannot be downloaded now .ConnectionError: no route"):
        read("org/other", download_dir=cache)


def test_modelscope_is_refused(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_USE_MODELSCOPE", "True")
    with pytest.raises(AdapterError, match=r"not downloaded from ModelScope\. Download it and"):
        read("org/sql")
    assert not hub.asked


def test_the_config_says_what_the_weights_mean(folder: Path) -> None:
    fields = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(fields | {"lora_alpha": 3 * fields["lora_alpha"]}))
    assert contents(read(folder)) != contents(read(LLAMA))
