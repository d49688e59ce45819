"""Finds the weights in a folder, whichever format they are in."""

from pathlib import Path

from ...errors import CheckpointError
from .layout import PYTORCH, SAFETENSORS, WeightFormat
from .mapped_file import StoredTensor
from .problems import FORMATS, shortlist
from .safetensors_file import open_safetensors
from .sharded import OpenFile, open_sharded
from .torch_file import open_torch_file

Tensors = dict[str, StoredTensor]
"""The tensors of a checkpoint by the names they have there, not yet read."""


def open_tensors(folder: Path) -> Tensors:
    """The tensors in `folder`: of safetensors if there are any, else of pytorch_model.bin.

    Raises:
        CheckpointError: there are neither, or a file is damaged.
        UnsafeCheckpointError: a pickle asks for something other than tensors.
    """
    readers: tuple[tuple[WeightFormat, OpenFile], ...] = (
        (SAFETENSORS, open_safetensors),
        (PYTORCH, open_torch_file),
    )
    for weights, open_file in readers:
        if (folder / weights.single).is_file():
            return open_file(folder / weights.single)
        if (folder / weights.index).is_file():
            return open_sharded(folder / weights.index, open_file)
    raise _no_weights(folder)


def _no_weights(folder: Path) -> CheckpointError:
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return CheckpointError(
        f"{folder} has no weights that Quire can read; it holds {shortlist(found) or 'nothing'}. "
        f"{FORMATS}. Convert other formats, such as GGUF, to safetensors first."
    )
