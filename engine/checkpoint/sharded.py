"""Weights in several files, and the index that says which tensor is in which."""

import json
from collections.abc import Callable
from pathlib import Path

from ...errors import CheckpointError
from .mapped_file import StoredTensor
from .problems import damaged, shortlist

OpenFile = Callable[[Path], dict[str, StoredTensor]]


def open_sharded(index: Path, open_file: OpenFile) -> dict[str, StoredTensor]:
    """The tensors of all the files that `index` names, each file read by `open_file`.

    Raises:
        CheckpointError: the index is not valid, or a file or a tensor it names is missing.
    """
    weight_map = _read_weight_map(index)
    files = sorted(set(weight_map.values()))
    missing = [file for file in files if not (index.parent / file).is_file()]
    if missing:
        raise CheckpointError(
            f"{index} names {len(files)} files, of which {len(missing)} are missing: "
            f"{shortlist(missing)}. Download or copy them into {index.parent}."
        )
    shards = {file: open_file(index.parent / file) for file in files}
    _check_present(index, weight_map, shards)
    tensors = {name: tensor for shard in shards.values() for name, tensor in shard.items()}
    # a tensor in two files counts from the one that the index names
    return tensors | {name: shards[file][name] for name, file in weight_map.items()}


def _read_weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        plain = all(Path(file).name == file for file in weight_map.values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(index, f"it has no valid weight_map ({error!r})") from error
    if not plain:
        raise damaged(index, "its weight_map names files outside its own folder")
    return weight_map


def _check_present(
    index: Path, weight_map: dict[str, str], shards: dict[str, dict[str, StoredTensor]]
) -> None:
    lost = [f"{name} in {file}" for name, file in weight_map.items() if name not in shards[file]]
    if lost:
        raise CheckpointError(
            f"{index} names {len(lost)} tensors that are not in the files it gives: "
            f"{shortlist(lost)}. They belong to different versions; download all of them again."
        )
