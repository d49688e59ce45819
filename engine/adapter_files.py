"""Finds the files of an adapter, in a folder or on the Hugging Face Hub, and reads them."""

import json
import os
import re
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..lora.adapter import Adapter
from ..lora.config import read_config
from ..lora.errors import AdapterError
from ..lora.mapping import BaseModel
from ..lora.reader import read_adapter
from ..lora.request import LoRARequest
from .checkpoint import hub
from .checkpoint.problems import shortlist
from .checkpoint.safetensors_file import open_safetensors
from .checkpoint.tensors import Tensors
from .checkpoint.torch_file import open_torch_file

CONFIG = "adapter_config.json"
SAFETENSORS = "adapter_model.safetensors"
PYTORCH = "adapter_model.bin"

_REPO_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_EXPECTED = f"An adapter that PEFT saved is a folder with {CONFIG} and {SAFETENSORS} (or {PYTORCH})"


def read_adapter_folder(
    request: LoRARequest,
    base: BaseModel,
    *,
    max_rank: int,
    download_dir: str | Path | None = None,
    revision: str | None = None,
) -> Adapter:
    """The adapter of `request`, downloaded first if it is not on this machine.

    It is made of views of the file of weights, which is mapped into memory as long as they live.

    A folder is used as it is. Anything else is the id of a repository on the Hugging Face Hub; with
    HF_HUB_OFFLINE=1 only what was downloaded before is used.

    Args:
        base: the model; as `lora.mapping.describe` gives it.
        max_rank: the engine's `max_lora_rank`.
        download_dir: where downloads are kept; None is the Hugging Face cache.
        revision: a branch, tag or commit of the repository; None is its main one.

    Raises:
        AdapterError: there is no such folder or repository, it cannot be reached, a file is missing
            or damaged, or the adapter is of a kind that is not supported or does not fit the model.
    """
    folder = _find_folder(request, revision, download_dir)
    _check_complete(request, folder)
    config = read_config(_read_fields(request, folder / CONFIG), request.name)
    tensors = {name: stored.array for name, stored in _open(request, folder).items()}
    return read_adapter(request.name, config, tensors, base, max_rank=max_rank)


def _find_folder(
    request: LoRARequest, revision: str | None, download_dir: str | Path | None
) -> Path:
    folder = Path(os.path.expanduser(request.path))  # unlike Path's own, never raises
    if _is_folder(folder):
        return folder
    if not _REPO_ID.fullmatch(request.path):
        raise _unusable(
            request,
            "which is no folder on this machine, and no repository's id",
            f"{_EXPECTED}; give its path, or an id such as 'org/name'.",
        )
    if hub.wants_modelscope():
        raise _unusable(
            request,
            "which is no folder on this machine, and adapters are not downloaded from ModelScope",
            f"Download it and give its folder, or unset {' and '.join(hub.MODELSCOPE_SWITCHES)}.",
        )
    return _from_hub(request, revision, download_dir)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name that is too long, or has a null character
        return False


def _from_hub(request: LoRARequest, revision: str | None, download_dir: str | Path | None) -> Path:
    try:
        return hub.snapshot(
            request.path,
            lambda names: _files_of(request, names),
            [CONFIG, SAFETENSORS, PYTORCH],
            lambda error: f"{type(error).__name__}: {error}",
            revision=revision,
            download_dir=download_dir,
        )
    except hub.NotDownloadedError as error:
        raise _unusable(
            request,
            "which is no folder on this machine, was not downloaded before, and cannot be "
            f"downloaded now ({error})",
            "Check the name and the connection, log in with `hf auth login` if you must accept "
            "terms first, or give the folder of a copy.",
        ) from error.__cause__
    except hub.DownloadFailedError as error:
        raise _unusable(
            request,
            f"whose download failed ({error})",
            "Check the connection and the free disk space and try again; what is complete is kept.",
        ) from error.__cause__


def _files_of(request: LoRARequest, names: list[str]) -> list[str]:
    """Those to download of a repository's files: the config, and the weights in one format."""
    weights = [name for name in (SAFETENSORS, PYTORCH) if name in names][:1]
    if CONFIG not in names or not weights:
        raise _incomplete(request, "the repository", names)
    return [CONFIG, *weights]


def _check_complete(request: LoRARequest, folder: Path) -> None:
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise _unusable(
            request, f"which cannot be read ({error})", "Check the folder's permissions."
        ) from error
    if CONFIG not in names or not {SAFETENSORS, PYTORCH}.intersection(names):
        raise _incomplete(request, str(folder), names)


def _read_fields(request: LoRARequest, path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise _unusable(
            request,
            f"whose {path} cannot be read as JSON ({error})",
            "Download or copy it again.",
        ) from error
    if not isinstance(fields, dict):
        raise _unusable(
            request,
            f"whose {path} holds a JSON {type(fields).__name__}, not an object",
            "Take the file that PEFT saved with the adapter.",
        )
    return fields


def _open(request: LoRARequest, folder: Path) -> Tensors:
    """The tensors of safetensors if there are any, else of the pickle, which is not executed."""
    try:
        if (folder / SAFETENSORS).exists():
            return open_safetensors(folder / SAFETENSORS)
        return open_torch_file(folder / PYTORCH)
    except CheckpointError as error:
        raise AdapterError(f"The adapter {request.name!r} cannot be read. {error}") from error


def _incomplete(request: LoRARequest, place: str, names: list[str]) -> AdapterError:
    lacking = [CONFIG] * (CONFIG not in names)
    if not {SAFETENSORS, PYTORCH}.intersection(names):
        lacking.append(f"{SAFETENSORS} (or {PYTORCH})")
    return _unusable(
        request,
        f"but {place} has no {' and no '.join(lacking)}; it holds {shortlist(names) or 'nothing'}",
        f"{_EXPECTED}. Give the folder that holds both.",
    )


def _unusable(request: LoRARequest, what: str, remedy: str) -> AdapterError:
    return AdapterError(
        f"The adapter {request.name!r} cannot be used: lora_path={request.path!r}, {what}. {remedy}"
    )
