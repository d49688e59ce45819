"""Matches the tensors of a checkpoint to the parameters of a model, before anything is read."""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from ...models.checkpoint_map import CheckpointMap, Piece
from .mapped_file import MappedFile, StoredTensor
from .problems import mismatch

if TYPE_CHECKING:
    import jax

_FLOATS = (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)

Problems = defaultdict[str, list[str]]
"""Kind of problem, to one line for each case."""


@dataclasses.dataclass(frozen=True)
class Fill:
    """Rows of a stored tensor and the part of a parameter they fill."""

    index: tuple[Any, ...]
    shape: tuple[int, ...]
    """Shape of that part."""
    source: np.ndarray
    file: MappedFile


@dataclasses.dataclass(frozen=True)
class ParamPlan:
    """One parameter and everything it is made of."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    fills: tuple[Fill, ...]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def castable(source: np.dtype, target: np.dtype) -> bool:
    """Whether values of `source` may become `target`: the same type, or 16-bit floats and wider."""
    return source == target or (source in _FLOATS and target in _FLOATS)


def plan_params(
    folder: Path,
    tensors: Mapping[str, StoredTensor],
    shapes: Mapping[str, "jax.ShapeDtypeStruct"],
    cmap: CheckpointMap,
) -> list[ParamPlan]:
    """How each parameter is filled, in the order of `shapes`.

    Raises:
        CheckpointError: anything does not fit. It lists missing, unused and ambiguous tensors,
            wrong shapes and types, and parameters not filled exactly once, all together.
    """
    problems: Problems = defaultdict(list)
    named = _canonical(tensors, cmap, problems)
    _check_used(named, cmap, problems)
    _check_rows(named, cmap, problems)
    fills: dict[str, list[Fill]] = {name: [] for name in shapes}
    for piece in cmap.pieces:
        fill = _fill(piece, named, shapes, problems)
        if fill is not None:
            fills[piece.param].append(fill)
    _check_covered(shapes, cmap, problems)
    if problems:
        raise mismatch(folder, problems)
    return [
        ParamPlan(name, shape.shape, np.dtype(shape.dtype), tuple(fills[name]))
        for name, shape in shapes.items()
    ]


def _canonical(
    tensors: Mapping[str, StoredTensor], cmap: CheckpointMap, problems: Problems
) -> dict[str, StoredTensor]:
    published: dict[str, str] = {}
    for name in tensors:
        other = published.setdefault(cmap.canonical(name), name)
        if other != name and not cmap.is_ignored(cmap.canonical(name)):
            problems["two tensors for the same place"].append(f"{other} and {name}")
    return {canonical: tensors[name] for canonical, name in published.items()}


def _check_used(named: Mapping[str, StoredTensor], cmap: CheckpointMap, problems: Problems) -> None:
    used = {piece.tensor for piece in cmap.pieces}
    missing = sorted(used - named.keys())
    unused = sorted(name for name in named.keys() - used if not cmap.is_ignored(name))
    if missing:
        problems["tensors missing from the checkpoint"] += missing
    if unused:
        problems["tensors the model does not use"] += unused


def _check_rows(named: Mapping[str, StoredTensor], cmap: CheckpointMap, problems: Problems) -> None:
    """Where pieces take rows of a tensor, together they must take all of them."""
    taken: dict[str, np.ndarray] = {}
    for piece in cmap.pieces:
        tensor = named.get(piece.tensor)
        if piece.rows is not None and tensor is not None and tensor.array.ndim:
            rows = taken.setdefault(piece.tensor, np.zeros(len(tensor.array), np.bool_))
            rows[piece.rows] = True
    for name, rows in taken.items():
        if not rows.all():
            used = f"{name} has {rows.size} rows, the model uses {rows.sum()}"
            problems["tensors used only in part"].append(used)


def _fill(
    piece: Piece,
    named: Mapping[str, StoredTensor],
    shapes: Mapping[str, "jax.ShapeDtypeStruct"],
    problems: Problems,
) -> Fill | None:
    """The piece, or None where it has no tensor or does not fit, which `problems` then says."""
    tensor = named.get(piece.tensor)
    if tensor is None or piece.param not in shapes:
        return None
    target = shapes[piece.param]
    index = _as_tuple(piece.index)
    part = _region(target.shape, index)
    whole = tensor.array
    source = whole if piece.rows is None or not whole.ndim else whole[piece.rows]
    if not _regroups(source.shape, part):
        rows = "" if piece.rows is None else f", its rows for {piece.param} {list(source.shape)}"
        problems["wrong shapes"].append(
            f"{piece.tensor} is {list(whole.shape)}{rows}, the model needs {list(part)}"
        )
        return None
    if not castable(whole.dtype, np.dtype(target.dtype)):
        problems["types that cannot be converted (Quire does not read quantized weights)"].append(
            f"{piece.tensor} is {whole.dtype}, the model needs {np.dtype(target.dtype)}"
        )
        return None
    return Fill(index, part, source, tensor.file)


def _as_tuple(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


def _region(shape: tuple[int, ...], index: tuple[Any, ...]) -> tuple[int, ...]:
    """Shape of what a basic index selects, found without memory for the array."""
    return np.broadcast_to(np.empty((), np.bool_), shape)[index].shape


def _regroups(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether one shape is the other with neighbouring dimensions merged: a transpose is not."""

    def boundaries(shape: tuple[int, ...]) -> set[int]:
        return {int(np.prod(shape[:i], dtype=object)) for i in range(len(shape) + 1)}

    x, y = boundaries(a), boundaries(b)
    return np.prod(a, dtype=object) == np.prod(b, dtype=object) and (x <= y or y <= x)


def _check_covered(
    shapes: Mapping[str, "jax.ShapeDtypeStruct"], cmap: CheckpointMap, problems: Problems
) -> None:
    indices: dict[str, list[tuple[Any, ...]]] = {name: [] for name in shapes}
    for piece in cmap.pieces:
        if piece.param in shapes:
            indices[piece.param].append(_as_tuple(piece.index))
        else:
            problems["parameters the model does not have"].append(piece.param)
    for name, shape in shapes.items():
        if not _covers_once(shape.shape, indices[name]):
            problems["parameters not filled exactly once"].append(name)


def _covers_once(shape: tuple[int, ...], indices: list[tuple[Any, ...]]) -> bool:
    """Counts over the leading dimensions that the indices mention; the others are taken whole."""
    mentioned = (
        len(shape) if any(Ellipsis in i for i in indices) else max(map(len, indices), default=0)
    )
    counts = np.zeros(shape[:mentioned], np.int32)
    for index in indices:
        counts[index] += 1
    return bool((counts == 1).all()) if indices else False
