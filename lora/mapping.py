"""Which modules of a model an adapter can change, and where their rows stand in its parameters."""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

EMBED = "embed.weight"
"""The parameter of the token embedding, [V, E]."""
HEAD = "head.weight"
"""The parameter of the head, [V, E]; a tied model has none, and uses EMBED."""

_POSITIONS = "embed_positions.weight"
_HEAD_TENSOR = "lm_head.weight"
_PREFIX = "base_model.model."
_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
_UPDATE = re.compile(
    r"(?P<module>.+)\.lora_(?:embedding_)?(?P<side>[AB])"
    r"(?:\.(?!(?:weight|bias)$)[^.]+)?(?:\.weight)?"  # the name of the adapter, in older files
)
_COPY = re.compile(r"(?P<module>.+?)(?:\.base_layer)?\.weight")


class PieceLike(Protocol):
    """One tensor of a checkpoint, or some of its rows, and the part of a parameter it fills:
    `params[param][index] = tensor[rows].reshape(params[param][index].shape)`."""

    @property
    def tensor(self) -> str: ...
    @property
    def param(self) -> str: ...
    @property
    def index(self) -> Any: ...
    @property
    def rows(self) -> slice | None: ...


@dataclasses.dataclass(frozen=True)
class Slot:
    """Some rows of a module's weight and the part of a parameter that they are."""

    param: str
    index: Any
    rows: slice
    shape: tuple[int, ...]
    """Of that part, [out..., in]."""


@dataclasses.dataclass(frozen=True)
class Module:
    """A layer of the checkpoint with a weight [out, in]; an embedding's is [V, E]."""

    name: str
    """Dotted, as in the checkpoint."""
    kind: Literal["linear", "embedding", "head"]
    slots: tuple[Slot, ...]

    @property
    def out_size(self) -> int:
        return sum(int(np.prod(slot.shape[:-1])) for slot in self.slots)

    @property
    def in_size(self) -> int:
        return self.slots[0].shape[-1]


@dataclasses.dataclass(frozen=True)
class BaseModel:
    """What adapters need to know of the model they change. `describe` makes it."""

    name: str
    modules: Mapping[str, Module]
    params: Mapping[str, Any]
    canonical: Callable[[str], str]
    tied: bool

    def module_named(self, name: str) -> str:
        """A module's name as in the checkpoint, from any that it was ever published under."""
        return self.canonical(f"{name}.weight").removesuffix(".weight")

    def param(self, slot: Slot) -> Any:
        """The parameter that `slot` is a part of; a tied head's is the embedding."""
        return self.params[EMBED if self.tied and slot.param == HEAD else slot.param]


def describe(
    name: str,
    pieces: Iterable[PieceLike],
    params: Mapping[str, Any],
    *,
    canonical: Callable[[str], str] = lambda name: name,
    tied: bool = False,
) -> BaseModel:
    """The modules of a model that an adapter can change.

    Args:
        name: what the engine calls the model, a folder or the id of a repository.
        pieces: of its checkpoint map.
        params: its parameters, by dotted path. Shapes are enough, unless an adapter holds a copy
            of the model's weights, which can then not be compared, and is refused.
        canonical: turns names that tensors were published under into those of `pieces`.
        tied: whether the head is the embedding. It counts as a module of its own all the same,
            with the parameter HEAD: PEFT's adapters of the two are independent.
    """
    slots: defaultdict[str, list[Slot]] = defaultdict(list)
    for piece in pieces:
        shape = _region(params[piece.param].shape, piece.index)
        if piece.param != _POSITIONS and piece.tensor.endswith(".weight") and len(shape) > 1:
            rows = slice(0, int(np.prod(shape[:-1]))) if piece.rows is None else piece.rows
            slots[piece.tensor].append(Slot(piece.param, piece.index, rows, shape))
    if tied:
        shape = tuple(params[EMBED].shape)
        slots[_HEAD_TENSOR].append(Slot(HEAD, (), slice(0, shape[0]), shape))
    modules = [_module(tensor, tuple(places)) for tensor, places in slots.items()]
    return BaseModel(name, {module.name: module for module in modules}, params, canonical, tied)


def _module(tensor: str, slots: tuple[Slot, ...]) -> Module:
    kinds: dict[str, Literal["embedding", "head"]] = {EMBED: "embedding", HEAD: "head"}
    return Module(tensor.removesuffix(".weight"), kinds.get(slots[0].param, "linear"), slots)


def _region(shape: tuple[int, ...], index: Any) -> tuple[int, ...]:
    return np.broadcast_to(np.empty((), np.bool_), shape)[index].shape


class TensorName(NamedTuple):
    """What the name of an adapter's tensor says."""

    module: str
    """As PEFT sees it; the checkpoint may call it otherwise."""
    role: Literal["A", "B", "copy"]
    """`lora_A`, `lora_B`, or the module's own weight, which PEFT saves beside an adapter of it."""


def parse_name(name: str) -> TensorName | None:
    """None where it is neither an update nor a weight."""
    plain = _WRAPPERS.sub("", name).removeprefix("module.").removeprefix(_PREFIX)
    if match := _UPDATE.fullmatch(plain):
        return TensorName(match["module"], "A" if match["side"] == "A" else "B")
    if ".lora_" not in plain and (match := _COPY.fullmatch(plain)):
        return TensorName(match["module"], "copy")
    return None
