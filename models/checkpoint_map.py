"""How the tensors of a Hugging Face checkpoint fill the parameters of a model."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any


@dataclasses.dataclass(frozen=True)
class Piece:
    """One tensor of the checkpoint, or some of its rows, and the part of a parameter it fills.

    `params[param][index] = tensor[rows].reshape(params[param][index].shape)`
    """

    tensor: str
    param: str
    index: Any = ()
    """Basic index into the parameter; `()` is all of it."""
    rows: slice | None = None
    """Rows of the tensor that are taken; None is all of them."""


def with_bias(source: str, target: str) -> Iterator[Piece]:
    """The pieces of a module that has a weight and a bias."""
    for name in ("weight", "bias"):
        yield Piece(f"{source}.{name}", f"{target}.{name}")


def renamed(name: str, beginnings: Iterable[tuple[str, str]]) -> str:
    """The name with its beginning replaced, by the first of the pairs (a regular expression, what
    stands in its place) that it begins with."""
    for published, used in beginnings:
        if start := re.match(published, name):
            return used + name[start.end() :]
    return name


@dataclasses.dataclass(frozen=True)
class CheckpointMap:
    """All pieces of a model. Together they cover every parameter exactly once."""

    pieces: tuple[Piece, ...]
    ignored: tuple[str, ...] = ()
    """Regular expressions (full match, canonical names) of tensors that may be there unused."""
    canonical: Callable[[str], str] = lambda name: name
    """Turns any name a tensor was ever published under into the one `pieces` uses."""

    def is_ignored(self, tensor: str) -> bool:
        """Whether the canonical name `tensor` is a known extra."""
        return any(re.fullmatch(pattern, tensor) for pattern in self.ignored)
