"""Finds the folder of a model: on this machine, on the Hugging Face Hub, or on ModelScope."""

import functools
import glob
import importlib
import logging
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ...errors import CheckpointError
from .layout import CONFIG, is_companion, weight_files
from .problems import FORMATS, shortlist

logger = logging.getLogger(__name__)

MODELSCOPE_SWITCHES = ("QUIRE_USE_MODELSCOPE", "VLLM_USE_MODELSCOPE")
_REPO_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


class NotDownloadedError(Exception):
    """Files are not on this machine, and cannot be downloaded now; the text says why."""


class DownloadFailedError(Exception):
    """A download broke off; the text says how."""


class _NoBar(tqdm):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "disable": True})


def find_model(
    model: str,
    *,
    revision: str | None = None,
    download_dir: str | Path | None = None,
    progress: bool = True,
    weights: bool = True,
) -> Path:
    """The folder of `model`, downloaded first if it is not on this machine.

    A folder is used as it is. Anything else is the id of a repository on the Hugging Face Hub, or
    on ModelScope if QUIRE_USE_MODELSCOPE or VLLM_USE_MODELSCOPE is "1" or "true". With
    HF_HUB_OFFLINE=1 only what was downloaded before is used.

    Args:
        model: a folder or the id of a repository.
        revision: a branch, tag or commit of the repository; None is its main one.
        download_dir: where downloads are kept; None is the cache of the library that downloads.
        progress: whether to show bars while downloading.
        weights: whether to download the weights too, or only config and tokenizer.

    Raises:
        CheckpointError: there is no such folder or repository, it cannot be reached, or it has no
            weights in a format that Quire reads.
    """
    folder = Path(os.path.expanduser(model))  # unlike Path's own, never raises
    if model and folder.is_dir():
        return folder
    if folder.is_file() or not _REPO_ID.fullmatch(model):
        what = "a file, not a folder" if folder.is_file() else "no folder, and no repository's id"
        raise CheckpointError(
            f"model={model!r} is {what}. Give the folder that holds config.json and the weights, "
            "or an id such as 'facebook/opt-125m'."
        )
    if wants_modelscope():
        return _from_modelscope(model, revision, download_dir, weights)
    try:
        return snapshot(
            model,
            lambda names: select_files(model, names, weights),
            [CONFIG],
            functools.partial(_why_unreachable, model, revision),
            revision=revision,
            download_dir=download_dir,
            tqdm_class=None if progress else _NoBar,
        )
    except NotDownloadedError as error:
        raise CheckpointError(
            f"model={model!r} is no folder on this machine, was not downloaded before, and cannot "
            f"be downloaded now: {error}. Check the name and the connection, or give the folder "
            "of a copy."
        ) from error.__cause__
    except DownloadFailedError as error:
        raise _download_failed(model, str(error)) from error.__cause__


def select_files(model: str, names: Iterable[str], weights: bool) -> list[str]:
    """The files of a repository that Quire needs, safetensors before other formats.

    Raises:
        CheckpointError: it has no weights that Quire reads, though `weights` are wanted.
    """
    names = list(names)
    companions = [name for name in names if is_companion(name)]
    if not weights:
        return companions
    chosen = weight_files(names)
    if not chosen:
        raise CheckpointError(
            f"The repository {model!r} has no weights that Quire can read; it holds "
            f"{shortlist(names) or 'nothing'}. {FORMATS}. Choose another version of the model."
        )
    return companions + chosen


def wants_modelscope() -> bool:
    """Whether the environment asks for ModelScope in place of the Hub."""
    values = (os.environ.get(switch, "") for switch in MODELSCOPE_SWITCHES)
    return any(value.strip().lower() in ("1", "true") for value in values)


def snapshot(
    repository: str,
    select: Callable[[list[str]], list[str]],
    kept: list[str],
    explain: Callable[[Exception], str],
    *,
    revision: str | None,
    download_dir: str | Path | None,
    **options: Any,
) -> Path:
    """The folder of a repository of the Hub, with some of its files; `kept` where it is not asked.

    Args:
        select: those to download, of the names of all.
        kept: patterns of files by which a download before is known.
        explain: says why the Hub could not be asked.
        options: for the download, as `huggingface_hub.snapshot_download` takes them.

    Raises:
        NotDownloadedError, DownloadFailedError, and what `select` raises.
    """
    import huggingface_hub
    from huggingface_hub import constants

    place = {"revision": revision, "cache_dir": download_dir}
    if constants.HF_HUB_OFFLINE:
        return _from_cache(repository, kept, place, "HF_HUB_OFFLINE is set", None)
    try:
        names = huggingface_hub.HfApi().list_repo_files(repository, revision=revision)
    except Exception as error:  # what the HTTP library raises differs between versions
        return _from_cache(repository, kept, place, explain(error), error)
    files = [glob.escape(file) for file in select(names)]
    try:
        folder = huggingface_hub.snapshot_download(
            repository, allow_patterns=files, **options, **place
        )
    except Exception as error:
        raise DownloadFailedError(f"{type(error).__name__}: {error}") from error
    return Path(folder)


def _from_cache(
    repository: str, kept: list[str], place: dict[str, Any], why: str, cause: Exception | None
) -> Path:
    """What was downloaded before. `why` says what keeps us from the Hub."""
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(
            repository, local_files_only=True, allow_patterns=kept, **place
        )
    except Exception as error:
        raise NotDownloadedError(why) from cause or error
    logger.info("Using the copy of %s downloaded before: %s.", repository, why)
    return Path(folder)


def _why_unreachable(model: str, revision: str | None, error: Exception) -> str:
    from huggingface_hub import errors

    match error:
        case errors.GatedRepoError():
            return (
                f"{model!r} is open only to those who accepted its terms; accept them on its page "
                "and log in with `hf auth login`"
            )
        case errors.RepositoryNotFoundError():
            return (
                f"the Hub has no repository {model!r} that you may read (`hf auth login` logs in)"
            )
        case errors.RevisionNotFoundError():
            return f"{model!r} has no revision {revision!r}"
    return f"the Hub does not answer ({type(error).__name__}: {error})"


def _download_failed(model: str, how: str) -> CheckpointError:
    return CheckpointError(
        f"Downloading {model!r} failed ({how}). Check the connection and the free disk space and "
        "try again; what is complete is kept."
    )


def _from_modelscope(
    model: str, revision: str | None, download_dir: str | Path | None, weights: bool
) -> Path:
    try:
        modelscope = importlib.import_module("modelscope")
        api = importlib.import_module("modelscope.hub.api").HubApi()
    except ImportError as error:
        raise CheckpointError(
            f"Downloading {model!r} from ModelScope needs the package modelscope, which is not "
            "installed. Run `pip install 'quire[modelscope]'`, or unset QUIRE_USE_MODELSCOPE and "
            "VLLM_USE_MODELSCOPE to download from the Hugging Face Hub."
        ) from error
    try:
        entries = api.get_model_files(model, revision=revision, recursive=True)
        names = [entry["Path"] for entry in entries if entry.get("Type") != "tree"]
        files = select_files(model, names, weights)
        return Path(
            modelscope.snapshot_download(
                model, revision=revision, cache_dir=download_dir, allow_patterns=files
            )
        )
    except CheckpointError:
        raise
    except Exception as error:  # modelscope passes on whatever its HTTP library raises
        raise _download_failed(model, f"{type(error).__name__}: {error}") from error
