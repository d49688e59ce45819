"""How decode attention is cut into pieces of work that keep all cores of a GPU busy.

A piece is a *split* of a row for one *bundle* of KV heads. Where a row is split depends on its own
length and on shapes, not on other rows, so a row gives the same bits in every batch of as many
rows. Letters as in `reference`; I splits, F fields.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Int

BLOCK = 64
"""Tokens of a step of the kernel; splits are whole multiples of it."""
MOST_SPLITS = 32
"""Of a row, unless there are so few rows that cores would idle."""


class Splits(NamedTuple):
    """The work of a step, the same for all of its layers with the same window."""

    items: Int[Array, "I F"]
    """Row, first visible token, end, and pages of the first block of each split; arbitrary behind
    the last. The splits of a row follow each other, those of rows with large ones come first."""
    starts: Int[Array, " R+1"]
    """Where the splits of each row begin in `items`, and where the last ends."""
    counts: Int[Array, " R"]
    """How many splits each row has."""


def splits(
    page_table: Int[Array, "R M"],
    lengths: Int[Array, " R"],
    *,
    page: int,
    window: int | None,
    bundles: int,
    cores: int,
    split_tokens: int | None = None,
) -> Splits:
    """Cuts each row into splits of nearly the same size; with split_tokens, of that size.

    Everything is elementwise but one sum and one scatter: a search or a sort would take longer.
    """
    chunk = min(page, BLOCK)
    longest = page_table.shape[1] * page
    longest = min(longest, window + chunk - 1) if window else longest
    limit = split_tokens or _limit(len(lengths) * bundles, longest, cores)
    # splits of a row that would give each core a piece
    wanted = 0 if split_tokens else cores // (len(lengths) * bundles)
    most = max(pl.cdiv(longest, limit), min(wanted, pl.cdiv(longest, BLOCK)))

    start = jnp.maximum(lengths - window, 0) if window else jnp.zeros_like(lengths)
    base = start - start % chunk
    tokens = lengths - base
    # where cores would idle: up to 8 splits of one block, then of two
    count = jnp.maximum(jnp.minimum(pl.cdiv(tokens, BLOCK), 8), pl.cdiv(tokens, 2 * BLOCK))
    count = jnp.maximum(jnp.minimum(count, wanted), pl.cdiv(tokens, limit))
    size = pl.cdiv(pl.cdiv(tokens, jnp.maximum(count, 1)), BLOCK) * BLOCK
    count = pl.cdiv(tokens, jnp.maximum(size, 1))

    row = jnp.arange(len(lengths) + 1, dtype=lengths.dtype)
    mine = jnp.append(size, jnp.full_like(size[:1], -1))[:, None]
    before = (size > mine) | ((size == mine) & (row[:-1] < row[:, None]))
    starts = jnp.where(before, count, 0).sum(axis=1, dtype=lengths.dtype)

    number = jnp.arange(most, dtype=lengths.dtype)
    row, first = row[:-1, None], base[:, None] + number * size[:, None]
    end = jnp.minimum(first + size[:, None], lengths[:, None])
    column = first[..., None] // page + jnp.arange(BLOCK // chunk, dtype=lengths.dtype)
    column = jnp.minimum(column, jnp.maximum(end - 1, 0)[..., None] // page)
    fields = [row, jnp.maximum(first, start[:, None]), end]
    fields = [jnp.broadcast_to(field, first.shape)[..., None] for field in fields]
    items = jnp.concatenate([*fields, page_table[row[..., None], column]], axis=2)
    items = items.reshape(-1, items.shape[2])
    # those that do not exist go to places of their own behind the array
    behind = jnp.arange(len(items), 2 * len(items), dtype=lengths.dtype).reshape(first.shape)
    place = jnp.where(number < count[:, None], starts[:-1, None] + number, behind).reshape(-1)
    items = jnp.zeros_like(items).at[place].set(items, mode="drop", unique_indices=True)
    return Splits(items, starts, count)


def _limit(pieces: int, longest: int, cores: int) -> int:
    """Tokens of a split: few, lest a core be left with one at the end, but not too many splits."""
    return max(1024 if pieces >= 4 * cores else 512, pl.cdiv(longest, MOST_SPLITS * BLOCK) * BLOCK)
