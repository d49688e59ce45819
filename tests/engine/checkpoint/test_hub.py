"""No test here reaches a network: the border is `huggingface_hub`'s listing and download."""

import logging
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from quire.engine.checkpoint import find_model
from quire.errors import CheckpointError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = ["config.json", "tokenizer.json", "README.md", "original/x.pth", "tf_model.h5"]
WEIGHTS = ["model.safetensors", "pytorch_model.bin"]


class Hub:
    """What the fake Hub has and what was asked of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = FILES + WEIGHTS
        self.error: Exception | None = None
        self.downloads: list[dict[str, Any]] = []

    def list(self, model: str, *, revision: str | None = None) -> list[str]:
        if self.error is not None:
            raise self.error
        return self.files

    def download(self, model: str, **options: Any) -> str:
        self.downloads.append({"model": model, **options})
        return str(self.folder)


@pytest.fixture(autouse=True)
def _no_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QUIRE_USE_MODELSCOPE", raising=False)
    monkeypatch.delenv("VLLM_USE_MODELSCOPE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path / "snapshot")
    monkeypatch.setattr(
        huggingface_hub.HfApi, "list_repo_files", lambda _, *a, **k: hub.list(*a, **k)
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.download)
    return hub


def unreachable(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", fail)


def response_error(kind: type[errors.HfHubHTTPError]) -> errors.HfHubHTTPError:
    return kind.__new__(kind)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache as huggingface_hub lays it out, with one model in it."""
    model = tmp_path / "cache" / "models--some--model"
    snapshot = model / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (model / "refs").mkdir()
    for name in ("main", "v1"):
        (model / "refs" / name).write_text(COMMIT)
    return tmp_path / "cache"


def snapshot_in(cache: Path) -> Path:
    return cache / "models--some--model" / "snapshots" / COMMIT


def test_a_folder_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_model(str(tmp_path)) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert find_model(f"~/{tmp_path.name}") == tmp_path


def test_a_folder_hides_a_repository_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "some" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    unreachable(monkeypatch, AssertionError("the Hub was asked"))
    assert find_model("some/model") == Path("some/model")


@pytest.mark.parametrize("model", ["./missing", "/missing", "a/b/c", "~missing", "", "a b", "../x"])
def test_what_is_neither_folder_nor_id(model: str) -> None:
    with pytest.raises(CheckpointError, match="no folder, and no repository's id. Give the folder"):
        find_model(model)


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    with pytest.raises(CheckpointError, match="is a file, not a folder"):
        find_model(str(tmp_path / "model.gguf"))


def test_only_what_is_needed_is_downloaded(hub: Hub) -> None:
    assert find_model("some/model", revision="v1", download_dir="/d") == hub.folder
    (download,) = hub.downloads
    assert download["model"] == "some/model"
    assert download["revision"] == "v1"
    assert download["cache_dir"] == "/d"
    assert download["allow_patterns"] == ["config.json", "tokenizer.json", "model.safetensors"]
    assert download["tqdm_class"] is None


def test_pytorch_files_where_there_are_no_safetensors(hub: Hub) -> None:
    hub.files = [*FILES, "pytorch_model.bin"]
    find_model("some/model")
    assert hub.downloads[0]["allow_patterns"][-1] == "pytorch_model.bin"


def test_file_names_are_no_patterns(hub: Hub) -> None:
    hub.files = ["model.safetensors", "tokenizer[1].json"]
    find_model("some/model")
    assert hub.downloads[0]["allow_patterns"] == ["tokenizer[[]1].json", "model.safetensors"]


def test_without_weights(hub: Hub) -> None:
    hub.files = FILES
    find_model("some/model", weights=False)
    assert hub.downloads[0]["allow_patterns"] == ["config.json", "tokenizer.json"]


def test_progress_can_be_silent(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    find_model("some/model", progress=False)
    with hub.downloads[0]["tqdm_class"](total=3, disable=False) as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""


def test_a_repository_of_other_formats(hub: Hub) -> None:
    hub.files = ["config.json", "model.gguf"]
    with pytest.raises(CheckpointError, match=r"holds config\.json, model\.gguf\. Quire reads"):
        find_model("some/model")
    assert hub.downloads == []


def test_a_download_that_breaks(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError, match=r"failed \(OSError: No space left.*disk space"):
        find_model("some/model")


def test_offline_takes_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    unreachable(monkeypatch, AssertionError("the Hub was asked"))
    assert find_model("some/model", download_dir=cache) == snapshot_in(cache)
    for revision in ("v1", COMMIT):
        assert find_model("some/model", revision=revision, download_dir=cache) == snapshot_in(cache)


@pytest.mark.parametrize(("model", "revision"), [("some/other", None), ("some/model", "v2")])
def test_offline_and_not_in_the_cache(
    cache: Path, monkeypatch: pytest.MonkeyPatch, model: str, revision: str | None
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="not downloaded before.*HF_HUB_OFFLINE is set"):
        find_model(model, revision=revision, download_dir=cache)


def test_the_environment_switches_offline(cache: Path, run_python: Callable[..., str]) -> None:
    code = (
        "from quire.engine.checkpoint import find_model; "
        f"print(find_model('some/model', download_dir={str(cache)!r}))"
    )
    assert run_python(code, HF_HUB_OFFLINE="1").strip() == str(snapshot_in(cache))


def test_without_a_network_the_cache_is_taken(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unreachable(monkeypatch, ConnectionError("no route to host"))
    with caplog.at_level(logging.INFO):
        assert find_model("some/model", download_dir=cache) == snapshot_in(cache)
    assert "the Hub does not answer (ConnectionError: no route to host)" in caplog.text


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (ConnectionError("no route"), r"the Hub does not answer \(ConnectionError: no route\)"),
        (response_error(errors.RepositoryNotFoundError), "has no repository 'some/model'"),
        (response_error(errors.GatedRepoError), "accept them on its page"),
        (response_error(errors.RevisionNotFoundError), "no revision 'v9'"),
    ],
)
def test_what_keeps_us_from_the_hub_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, why: str
) -> None:
    unreachable(monkeypatch, error)
    with pytest.raises(CheckpointError, match=f"cannot be downloaded now: .*{why}") as caught:
        find_model("some/model", revision="v9", download_dir=tmp_path)
    assert caught.value.__cause__ is error


class ModelScope:
    """A fake `modelscope` package."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.asked: list[tuple[str, dict[str, Any]]] = []
        package: Any = types.ModuleType("modelscope")
        package.snapshot_download = self.download
        api: Any = types.ModuleType("modelscope.hub.api")
        api.HubApi = lambda: types.SimpleNamespace(get_model_files=self.list)
        for module in (package, types.ModuleType("modelscope.hub"), api):
            monkeypatch.setitem(sys.modules, module.__name__, module)

    def list(self, model: str, **options: Any) -> list[dict[str, str]]:
        self.asked.append((model, options))
        return [{"Path": "original", "Type": "tree"}, *({"Path": f} for f in FILES + WEIGHTS)]

    def download(self, model: str, **options: Any) -> str:
        self.asked.append((model, options))
        return str(self.folder)


@pytest.mark.parametrize("switch", ["QUIRE_USE_MODELSCOPE", "VLLM_USE_MODELSCOPE"])
@pytest.mark.parametrize("value", ["1", "true", "True", " TRUE "])
def test_modelscope(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, switch: str, value: str
) -> None:
    unreachable(monkeypatch, AssertionError("the Hub was asked"))
    scope = ModelScope(tmp_path / "scope", monkeypatch)
    monkeypatch.setenv(switch, value)
    assert find_model("some/model", revision="v1", download_dir="/d") == tmp_path / "scope"
    (listed, downloaded) = scope.asked
    assert listed == ("some/model", {"revision": "v1", "recursive": True})
    assert downloaded[1] == {
        "revision": "v1",
        "cache_dir": "/d",
        "allow_patterns": ["config.json", "tokenizer.json", "model.safetensors"],
    }


@pytest.mark.parametrize("value", ["0", "false", ""])
def test_modelscope_is_off(hub: Hub, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("QUIRE_USE_MODELSCOPE", value)
    assert find_model("some/model") == hub.folder


def test_modelscope_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)
    monkeypatch.setenv("VLLM_USE_MODELSCOPE", "True")
    with pytest.raises(CheckpointError, match=r"pip install 'quire\[modelscope\]'"):
        find_model("some/model")


def test_a_folder_needs_no_modelscope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)
    monkeypatch.setenv("VLLM_USE_MODELSCOPE", "True")
    assert find_model(str(tmp_path)) == tmp_path


def test_modelscope_errors_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scope = ModelScope(tmp_path, monkeypatch)
    monkeypatch.setattr(scope, "list", None)
    sys.modules["modelscope.hub.api"].__dict__["HubApi"] = lambda: types.SimpleNamespace()
    monkeypatch.setenv("VLLM_USE_MODELSCOPE", "1")
    with pytest.raises(CheckpointError, match="Downloading 'some/model' failed"):
        find_model("some/model")
