"""What a slot of a weight holds of an adapter, by the plain rule."""

from collections.abc import Iterable, Sequence

import numpy as np
from jax.typing import DTypeLike

from quire.lora.adapter import Part
from quire.models.layers import Axes
from quire.models.low_rank import parts_of


def stacked(
    updates: Iterable[Part], shape: Sequence[int], axes: Axes, rank: int, dtype: DTypeLike
) -> tuple[np.ndarray, np.ndarray]:
    """One slot of the weight [out..., in] on the host: a [N, R, in] and b [out..., R]."""
    *out, in_size = shape
    parts = parts_of(shape, axes)
    a = np.zeros((parts.number, rank, in_size), dtype)
    b = np.zeros((*out, rank), dtype)
    numbers = parts.over(out)
    for update in updates:
        used = len(update.a)
        for number in np.unique(numbers[update.index]):
            a[number, :used] = update.a
        b[update.index][..., :used] = update.b
    return a, b
