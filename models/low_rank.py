"""Low-rank updates of a model's weights: several adapters, one in each slot (arXiv:2106.09685).

`attach` gives a model room for them; then every token takes the update in its own slot. Adapters
differ in the contents of arrays alone, so programs stay.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ..lora.mapping import EMBED, HEAD
from ..pallas_kernels.block_reference import own
from . import shards
from .layers import Axes, matmul, weight

_HALVES = "gate_up"
_PART_RULES = {
    "group": lambda size: (*(0,) * (size - 2), 1, 2),
    _HALVES: lambda size: tuple(range(size)),
}
"""Logical axes along which fused weights hold several projections: the number of each."""


class Parts(NamedTuple):
    """The projections that one weight holds; each has an A of its own."""

    axis: int
    numbers: tuple[int, ...]
    """Which projection stands at each place along the axis."""

    @property
    def number(self) -> int:
        """How many there are."""
        return max(self.numbers) + 1

    def over(self, out: Sequence[int]) -> np.ndarray:
        """The number for each element of a result of shape `out`, as a read-only view.

        Where there is but one, `out` may be a part of the result.
        """
        if self.number == 1:
            return np.broadcast_to(0, out)
        shape = [-1 if axis == self.axis else 1 for axis in range(len(out))]
        return np.broadcast_to(np.reshape(self.numbers, shape), out)


def parts_of(shape: Sequence[int], axes: Axes) -> Parts:
    """Those of a weight [out..., in] with these logical axes."""
    for axis, (name, size) in enumerate(zip(axes, shape, strict=True)):
        if name in _PART_RULES:
            return Parts(axis, _PART_RULES[name](size))
    return Parts(0, (0,) * shape[0])


def out_first(axes: Axes) -> bool:
    """Whether B is stacked as [out..., N, S, R], which suits products, rather than [S, R, out...].

    It is zero then where a part is not that of the row.

    `axes` are those of the weight.
    """
    return _HALVES in axes or "vocab" in axes


class LowRank(nnx.Module):
    """Updates of one weight [out..., in] with N parts: S slots of rank R, zeros at first."""

    def __init__(
        self, shape: Sequence[int], axes: Axes, slots: int, rank: int, *, dtype: DTypeLike
    ) -> None:
        """`shape` and logical `axes` are those of the weight."""
        self.count = shape[0]
        self.parts = parts_of(shape, axes)
        self.out_first = out_first(axes)
        make: dict[str, Any] = {"init": "zeros", "dtype": dtype, "rngs": nnx.Rngs(0)}
        low, names = (slots, rank), ("slots", "rank")
        *out, in_size = shape
        self.a = weight((self.parts.number, *low, in_size), ("parts", *names, axes[-1]), **make)
        if self.out_first:
            b_shape = (*out, self.parts.number, *low)
            self.b = weight(b_shape, (*axes[:-1], "parts", *names), **make)
        else:
            self.b = weight((*low, *out), (*names, *axes[:-1]), **make)

    def __call__(
        self,
        x: Float[Array, "*N I"],
        slots: Int[Array, "*N"] | None,
        dtype: DTypeLike | None = None,
    ) -> Float[Array, "..."]:
        """What to add to the product of x, in `dtype`, by default the type of the weight.

        Args:
            slots: S is none; None is the first slot for all.
        """
        added = self.up(self.down_own(x.reshape(-1, x.shape[-1]), slots), dtype)
        return added.reshape(*x.shape[:-1], *added.shape[1:])

    def down_own(
        self, x: Float[Array, "T I"], slots: Int[Array, "..."] | None
    ) -> Float[Array, "T N S R"]:
        """x times the A of its slot, and zeros for the other slots."""
        a = self.a[...]
        h = matmul(x, a.reshape(-1, a.shape[-1])).reshape(-1, *a.shape[:-1])
        return own(h, _one_each(slots, len(x)))

    def up(
        self, h: Float[Array, "T N S R"], dtype: DTypeLike | None = None
    ) -> Float[Array, "T ..."]:
        """h times B of every slot, added up."""
        b, h = self.b[...], h.reshape(h.shape[0], -1)
        if self.out_first:
            return matmul(h, b.reshape(-1, h.shape[1]), dtype).reshape(-1, *b.shape[:-3])
        out = b.shape[2:]
        b = b.reshape(h.shape[1] // self.parts.number, -1).T
        b = _by_part(b, self.parts.over(out).reshape(-1), self.parts.number)
        return matmul(h, b.reshape(-1, h.shape[1]), dtype).reshape(-1, *out)

    def lookup(
        self, index: Int[Array, " T"], slots: Int[Array, " T"] | None
    ) -> Float[Array, "T I"]:
        """What to add to rows of a table [out, in], as `shards.own_rows` gives them."""
        h = shards.own_rows(self.b[...], index, self.count)
        h = own(h, _one_each(slots, len(index)))
        a = self.a[...].reshape(-1, self.a.shape[-1])
        return matmul(h.reshape(h.shape[0], -1), a.T)


def _by_part(b: Float[Array, "..."], number: np.ndarray, count: int) -> Float[Array, "..."]:
    """B [out..., K] as [out..., count, K], zero but where `number` [out...] is that of the part."""
    mine = np.arange(count) == number[..., None]
    b = b[..., None, :]
    return jnp.where(mine[..., None], b, jnp.zeros_like(b))


def _one_each(slots: Int[Array, "*N"] | None, count: int) -> Int[Array, " {count}"]:
    return jnp.zeros(count, jnp.int32) if slots is None else slots.reshape(-1)


def attach(
    model: nnx.Module, names: Iterable[str], slots: int, rank: int, dtype: DTypeLike
) -> None:
    """Gives the weights with these dotted names a `LowRank` each, where `path_of` says."""
    for name in names:
        stored = _at(model, EMBED if name == HEAD and _is_tied(model) else name)
        axes = stored.get_metadata()["axes"]
        owner, _, attribute = path_of(name).rpartition(".")
        low_rank = LowRank(stored.shape, axes, slots, rank, dtype=dtype)
        setattr(_at(model, owner), attribute, nnx.data(low_rank))


def path_of(name: str) -> str:
    """The dotted name of the `LowRank` of a weight."""
    if name in (EMBED, HEAD):
        return name.replace(".weight", "_lora")
    return name.replace(".weight", ".lora") if name.endswith(".weight") else f"{name}_lora"


def _is_tied(model: Any) -> bool:
    return model.head is None


def _at(model: Any, path: str) -> Any:
    for step in filter(None, path.split(".")):
        model = model[int(step)] if step.isdigit() else getattr(model, step)
    return model


def written(
    a: Float[Array, "N S R I"],
    b: Float[Array, "..."],
    slot: Int[Array, ""],
    new_a: Float[Array, "N R I"],
    new_b: Float[Array, "..."],
    axes: Axes,
) -> tuple[Array, Array]:
    """The arrays of a `LowRank` with those of one adapter, [N, R, in] and [out..., R], in `slot`.

    Args:
        axes: the weight's.
    """
    a = a.at[:, slot].set(new_a)
    if out_first(axes):
        parts = parts_of((*new_b.shape[:-1], a.shape[-1]), axes)
        new_b = _by_part(new_b, parts.over(new_b.shape[:-1]), parts.number)
        return a, b.at[..., slot, :].set(new_b)
    return a, b.at[slot].set(jnp.moveaxis(new_b, -1, 0))
