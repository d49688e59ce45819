"""Rotary positions along time, height and width (M-RoPE, arXiv:2409.12191, section 2.1)."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from ..errors import ModelConfigError
from .attention import Rotary
from .rope import RopeConfig

Sections = tuple[int, int, int]
"""Pairs of a head's elements that rotate by time, by height and by width, in this order."""
Grid = tuple[int, int, int]
"""Features of a picture or video along time, height and width."""


def sections(parameters: Mapping[str, Any], rope: RopeConfig) -> Sections:
    """`mrope_section` of the rope settings, by default that of heads of 128.

    Raises:
        ModelConfigError: it is not three counts that together are the pairs of a head.
    """
    value, pairs = parameters.get("mrope_section", [16, 24, 24]), len(rope.inv_freq)
    whole = isinstance(value, list | tuple) and all(isinstance(n, int) and n >= 0 for n in value)
    if not whole or len(value) != 3 or sum(value) != pairs:
        raise ModelConfigError(
            f"The rope setting 'mrope_section' in the model's config.json is {value!r}; it must be "
            f"three integers from 0 on whose sum is {pairs}, half of a head. Correct the file."
        )
    return value[0], value[1], value[2]


def cos_sin(rope: RopeConfig, sections: Sections, positions: Int[Array, "3 T"]) -> Rotary:
    """`RopeConfig.cos_sin` with a position for each section; of equal ones it gives the same."""
    axis = np.repeat(np.arange(3), sections)  # of each pair
    frequencies = jnp.asarray(rope.inv_freq, jnp.float32)
    angles = positions[axis].T.astype(jnp.float32) * frequencies[None, :]
    return jnp.cos(angles) * rope.attention_factor, jnp.sin(angles) * rope.attention_factor


def positions(length: int, pictures: Iterable[tuple[int, Grid]]) -> tuple[np.ndarray, int]:
    """Where the tokens of a prompt stand. On the host.

    Text advances all three positions by one a token. A picture's features stand at their place in
    the grid, counted from where the next token would stand; text goes on after the largest of
    their positions.

    Args:
        length: tokens of the prompt.
        pictures: the index of each picture's first token, and its grid; in order. Each has one
            token a feature, row by row, frame by frame.

    Returns:
        int32 [3, length], and the delta: token i >= length stands at i + delta, thrice.

    Raises:
        ValueError: pictures overlap, are out of order, or do not fit into the prompt.
    """
    out = np.empty((3, length), np.int32)
    end = delta = 0  # of what is placed already
    for start, grid in pictures:
        count = math.prod(grid)
        if start < end or start + count > length:
            raise ValueError(
                f"A picture of {count} tokens begins at token {start}; it must begin at token "
                f"{end} or later and end at token {length} or before."
            )
        first = start + delta
        out[:, end:start] = np.arange(end, start) + delta
        out[:, start : start + count] = np.indices(grid).reshape(3, count) + first
        end = start + count
        delta = first + max(grid) - end
    out[:, end:] = np.arange(end, length) + delta
    return out, delta
