"""Where a model comes from: its folder, and those of its parts that are models of their own."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...errors import CheckpointError, ModelConfigError
from ...models import hf_config as fields
from ...models.checkpoint_map import CheckpointMap
from ...models.part import Part
from .config_file import read_config
from .hub import find_model
from .tensors import Tensors, open_tensors


@dataclasses.dataclass(frozen=True)
class FoundPart:
    """A part and the model that it is taken from."""

    part: Part
    model: str
    """A folder, or the id of a repository."""
    folder: Path
    """Has its config; weights of a repository may be missing."""
    download_dir: str | Path | None

    def with_weights(self) -> Path:
        """The folder of the model with its weights, downloaded if need be.

        Raises CheckpointError.
        """
        return _find(self.part, self.model, self.download_dir, weights=True)


@dataclasses.dataclass(frozen=True)
class Source:
    """The files of a model."""

    folder: Path
    parts: Mapping[str, FoundPart]
    """By kind, `text` or one of media; empty for most models, which have all in their folder."""

    def folders(self, kind: str) -> tuple[Path, ...]:
        """Where files about a kind may be, the first choice first."""
        part = self.parts.get(kind)
        return (self.folder,) if part is None else (self.folder, part.folder)


def find_parts(
    parts: Mapping[str, Part], hf_config: Mapping[str, Any], download_dir: str | Path | None
) -> dict[str, FoundPart]:
    """Those of `parts` that a `config.json` leaves to other models, without their weights.

    Raises:
        CheckpointError: a model cannot be found.
        ModelConfigError: a field that names one is no text.
    """
    found: dict[str, FoundPart] = {}
    for kind, part in parts.items():
        if (model := hf_config.get(part.source)) is None:
            continue
        if not isinstance(model, str) or not model:
            raise ModelConfigError(
                f"The field {part.source!r} in the model's config.json is {model!r}; it must be a "
                "folder or the id of a repository. Correct the file."
            )
        folder = _find(part, model, download_dir, weights=False)
        found[kind] = FoundPart(part, model, folder, download_dir)
    return found


def joined(hf_config: Mapping[str, Any], parts: Iterable[FoundPart]) -> dict[str, Any]:
    """The `config.json` of a checkpoint that has all `parts` in itself.

    Raises ModelConfigError where that of a part is missing or malformed.
    """
    whole = dict(hf_config)
    for found in parts:
        name = found.part.config
        whole[name] = {**read_config(found.folder), **fields.part(hf_config, name, {})}
        whole[found.part.source] = None
    return whole


def open_joined(folder: Path, cmap: CheckpointMap, parts: Iterable[FoundPart]) -> Tensors:
    """The tensors in `folder` and, of each part of which some are missing, those that it lacks.

    Raises CheckpointError and UnsafeCheckpointError.
    """
    tensors = open_tensors(folder)
    own = {cmap.canonical(name) for name in tensors}
    missing = {piece.tensor for piece in cmap.pieces} - own
    for found in parts:
        if any(name.startswith(found.part.tensors) for name in missing):
            others = open_tensors(found.with_weights())
            named = {found.part.prefix + name: tensor for name, tensor in others.items()}
            tensors |= {n: tensor for n, tensor in named.items() if cmap.canonical(n) not in own}
    return tensors


def _find(part: Part, model: str, download_dir: str | Path | None, *, weights: bool) -> Path:
    try:
        return find_model(model, download_dir=download_dir, weights=weights)
    except CheckpointError as error:
        raise CheckpointError(
            f"The model's config.json leaves a part of it to another model, {part.source}="
            f"{model!r}, which is not to be had: {error} A copy in a folder may stand in for it: "
            f"hf_overrides={{{part.source!r}: FOLDER}}."
        ) from error.__cause__
