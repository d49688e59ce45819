"""Makes an `Adapter` of PEFT's tensors, or says everything in which they do not fit the model."""

import logging
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

import ml_dtypes
import numpy as np

from .adapter import Adapter, Part
from .config import AdapterConfig
from .errors import refused
from .mapping import BaseModel, Module, parse_name

logger = logging.getLogger(__name__)

_FLOATS = (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)
_ROWS_AT_ONCE = 4096
_REMEDY = "Check that the adapter was made for this model and that its files are complete."

Problems = defaultdict[str, list[str]]
"""Kind of problem, to one line for each case."""


class _Stored(NamedTuple):
    name: str
    """Of the tensor in the file."""
    module: str
    """As PEFT sees it."""
    array: np.ndarray


class _Update(NamedTuple):
    module: Module
    scale: float
    a: np.ndarray
    """[r, in] in the type of the file."""
    b: np.ndarray
    """[out, r], likewise, without the scale."""


_Sides = dict[str, _Stored]
"""`A` and `B` of one module, if they are there."""


def read_adapter(
    name: str,
    config: AdapterConfig,
    tensors: Mapping[str, np.ndarray],
    base: BaseModel,
    *,
    max_rank: int,
) -> Adapter:
    """The adapter of `tensors`, by the names that PEFT saves. It is made of views of them.

    Logs a warning where the adapter names another base model, or has rows for added tokens, which
    are left out: no prompt holds such a token, and none is sampled.

    Args:
        name: of the adapter.
        max_rank: the engine's `max_lora_rank`.

    Raises:
        AdapterError: a tensor belongs to no module, a target of the config matched none or has no
            tensors, one of a pair is missing, a shape or type does not fit, or a rank is above
            `max_rank`; all differences are in one error.
    """
    problems: Problems = defaultdict(list)
    pairs = _pairs(tensors, base, problems)
    _check_targets(config, pairs, base, problems)
    updates = [
        update
        for module, sides in sorted(pairs.items())
        if (update := _update(name, config, base.modules[module], sides, max_rank, problems))
    ]
    if not pairs and not problems:
        problems["nothing to apply"].append("the adapter has no tensors")
    if problems:
        raise refused(f"The adapter {name!r} does not fit the model", problems, _REMEDY)
    _warn_of_other_base(name, config, base)
    return Adapter(name, max(len(u.a) for u in updates), _parts(updates))


def _pairs(
    tensors: Mapping[str, np.ndarray], base: BaseModel, problems: Problems
) -> dict[str, _Sides]:
    """The updates of each module, by its name in the checkpoint; copies of weights are checked."""
    pairs: defaultdict[str, _Sides] = defaultdict(dict)
    for name, array in tensors.items():
        parsed = parse_name(name)
        module = base.module_named(parsed.module) if parsed else ""
        if parsed is None or module not in base.modules:
            problems["tensors of no module that the model has and an adapter can change"].append(
                name
            )
        elif parsed.role == "copy":
            _check_copy(name, array, base, base.modules[module], problems)
        elif other := pairs[module].get(parsed.role):
            problems["two tensors for the same place"].append(f"{other.name} and {name}")
        else:
            pairs[module][parsed.role] = _Stored(name, parsed.module, array)
    return pairs


def _check_copy(
    name: str, array: np.ndarray, base: BaseModel, module: Module, problems: Problems
) -> None:
    """PEFT saves embedding and head whole beside their adapters; they must be the model's own."""
    shape = (module.out_size, module.in_size)
    if not _has_shape(array, shape, module.kind != "linear"):
        found = f"{name} is {list(array.shape)}, the model's {list(shape)}"
        problems["wrong shapes"].append(found)
        return
    for slot in module.slots:
        weight = base.param(slot)
        if not hasattr(weight, "__array__"):
            problems["copies of weights that cannot be compared with the model's"].append(name)
        elif not _same(array[slot.rows].reshape(slot.shape), np.asarray(weight)[slot.index]):
            problems["weights trained in full, which are not supported"].append(name)


def _has_shape(array: np.ndarray, shape: tuple[int, int], may_be_longer: bool) -> bool:
    """Whether `array` is of `shape`, or has more rows where it may (those of added tokens)."""
    if array.ndim != 2 or array.shape[1] != shape[1]:
        return False
    return len(array) == shape[0] or (may_be_longer and len(array) > shape[0])


def _same(copy: np.ndarray, weight: np.ndarray) -> bool:
    """Whether two arrays are equal but for how they were rounded to 16 bits."""
    return all(
        np.allclose(
            copy[i : i + _ROWS_AT_ONCE].astype(np.float32),
            weight[i : i + _ROWS_AT_ONCE].astype(np.float32),
            rtol=2**-7,
            atol=1e-7,
        )
        for i in range(0, len(weight), _ROWS_AT_ONCE)
    )


def _check_targets(
    config: AdapterConfig, pairs: Mapping[str, _Sides], base: BaseModel, problems: Problems
) -> None:
    """The modules with tensors must be just those that the config says."""
    seen = _names_peft_sees(pairs, base)
    linear = {seen[name]: module.kind == "linear" for name, module in base.modules.items()}
    if unmatched := config.targets.unmatched(linear):
        problems["target_modules that match nothing in the model"] += unmatched
    for name, module in base.modules.items():
        targeted = _is_target(config, base, module, seen)
        if name in pairs and not targeted:
            problems["modules that have tensors, but are no target of the config"].append(name)
        if name not in pairs and targeted and config.targets.modules is not None:
            problems["modules that the config targets, but that have no tensors"].append(name)


def _is_target(
    config: AdapterConfig, base: BaseModel, module: Module, seen: Mapping[str, str]
) -> bool:
    if config.targets.include(seen[module.name], is_linear=module.kind == "linear"):
        return True
    # with ensure_weight_tying PEFT takes the head off the list and adapts it with the embedding
    tied = config.tie_weights and base.tied and module.kind == "head"
    embeddings = [m.name for m in base.modules.values() if m.kind == "embedding"]
    return tied and any(config.targets.include(seen[e], is_linear=False) for e in embeddings)


def _names_peft_sees(pairs: Mapping[str, _Sides], base: BaseModel) -> dict[str, str]:
    """By their names in the checkpoint. An adapter of the model without its head lacks a prefix."""
    published = {name: stored.module for name, s in pairs.items() for stored in s.values()}
    lacking = {
        name.removesuffix(module) for name, module in published.items() if name.endswith(module)
    }
    prefix = lacking.pop() if len(lacking) == 1 else ""
    return {name: published.get(name, name.removeprefix(prefix)) for name in base.modules}


def _update(
    adapter: str,
    config: AdapterConfig,
    module: Module,
    sides: _Sides,
    max_rank: int,
    problems: Problems,
) -> _Update | None:
    """None where the pair is incomplete or does not fit, which `problems` then says."""
    if len(sides) < 2:
        (stored,) = sides.values()
        other = "B" if "A" in sides else "A"
        problems["tensors without the other of their pair"].append(f"{stored.name} (no {other})")
        return None
    rank = config.module_rank(sides["A"].module)
    if rank > max_rank:
        problems[
            f"ranks above max_lora_rank={max_rank}; start the engine with a higher one"
        ].append(f"{rank} at {module.name}")
    a, b = (sides["B"], sides["A"]) if module.kind == "embedding" else (sides["A"], sides["B"])
    may_be_longer = module.kind != "linear"
    arrays = (
        _fitting(a, (rank, module.in_size), module, problems),
        _fitting(b, (module.out_size, rank), module, problems, may_be_longer=may_be_longer),
    )
    if arrays[0] is None or arrays[1] is None:
        return None
    _warn_of_added_tokens(adapter, module, len(arrays[1]))
    scale = config.module_scale(sides["A"].module)
    return _Update(module, scale, arrays[0], arrays[1][: module.out_size])


def _fitting(
    stored: _Stored,
    shape: tuple[int, int],
    module: Module,
    problems: Problems,
    *,
    may_be_longer: bool = False,
) -> np.ndarray | None:
    """A view, of `shape` but for its rows; an embedding's tensors are stored transposed."""
    order = -1 if module.kind == "embedding" else 1
    array = stored.array.T if order < 0 else stored.array
    if not _has_shape(array, shape, may_be_longer):
        found, wanted = list(stored.array.shape), list(shape[::order])
        problems["wrong shapes"].append(f"{stored.name} is {found}, the model needs {wanted}")
        return None
    if array.dtype not in _FLOATS:
        problems["types that are no floats"].append(f"{stored.name} is {array.dtype}")
        return None
    return array


def _warn_of_added_tokens(adapter: str, module: Module, count: int) -> None:
    if count > module.out_size:
        logger.warning(
            "The adapter %r has %d tokens at %s, the model %d: those it added are left out.",
            adapter,
            count,
            module.name,
            module.out_size,
        )


def _parts(updates: list[_Update]) -> dict[str, tuple[Part, ...]]:
    parts: defaultdict[str, list[Part]] = defaultdict(list)
    for module, scale, a, b in updates:
        for slot in module.slots:
            rows = b[slot.rows].reshape(*slot.shape[:-1], len(a))
            parts[slot.param].append(Part(slot.index, a, rows, scale))
    return {param: tuple(found) for param, found in sorted(parts.items())}


def _warn_of_other_base(name: str, config: AdapterConfig, base: BaseModel) -> None:
    """Compares last names only: the same model may lie in a folder here and there on a Hub."""
    last = re.split(r"[/\\]", config.base_name.rstrip("/\\"))[-1]
    if last and last not in re.split(r"[/\\]|--", base.name):
        logger.warning(
            "The adapter %r says that it was made for %r; the model here is %r.",
            name,
            config.base_name,
            base.name,
        )
