"""How `hopper_prefill` cuts the queries of a step into tiles: small tables, made by XLA.

They depend on the rows only, so that all layers of a step with the same window share one.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Int


class Tile(NamedTuple):
    """Consecutive query tokens of a row. Scalars in the kernel, else columns of a table."""

    row: Int[Array, ""]
    token: Int[Array, ""]
    begin: Int[Array, ""]
    end: Int[Array, ""]
    shift: Int[Array, ""]
    start: Int[Array, ""]
    """The first block of keys that a query sees; all counts below are of blocks, too."""
    whole: Int[Array, ""]
    """The first that all queries see whole."""
    whole_end: Int[Array, ""]
    """One behind the last that all queries see whole."""
    stop: Int[Array, ""]
    """One behind the last that a query sees."""
    oldest: Int[Array, ""]
    """The first position that a query of the row sees; older pages may be someone else's."""
    length: Int[Array, ""]


def tiles(
    query_starts: Int[Array, " R+1"],
    lengths: Int[Array, " R"],
    total: int,
    size: int,
    skip: Bool[Array, " R"] | None = None,
) -> Int[Array, "tiles 7"]:
    """Cuts `total` query tokens into tiles of at most `size` consecutive tokens of one row.

    Tiles begin at multiples of 8 in the step, as TMA wants it: the first of a row may begin up to
    7 tokens before it. The padding behind the rows is cut like a row that sees nothing. Together
    the tiles cover every token once. Those with the most keys come first, which balances the load.

    Args:
        skip: rows to leave out; their results are undefined.

    Returns:
        For each tile its row, where it begins, the first token and the one behind the last that
        are its own (the same for tiles not needed), position less number of a token, the position
        of the row's first query, and the row's length.
    """
    starts = query_starts.astype(jnp.int32)
    lengths = lengths.astype(jnp.int32)
    ends = jnp.append(starts[1:], total)
    lengths = jnp.append(lengths, -2 * total)
    shifts = lengths - ends
    aligned = starts & -8
    counts = pl.cdiv(ends - aligned, size)
    empty = ends <= starts
    if skip is not None:
        empty |= jnp.append(skip, False)
    last = jnp.cumsum(jnp.where(empty, 0, counts), dtype=jnp.int32)
    number = jnp.arange((total + 7 * ends.shape[0]) // size + ends.shape[0], dtype=jnp.int32)
    row = jnp.searchsorted(last, number, side="right", method="compare_all").astype(jnp.int32)
    needed = row < ends.shape[0]
    row = jnp.minimum(row, ends.shape[0] - 1)
    token = aligned[row] + (number - jnp.append(0, last)[row]) * size
    begin = jnp.maximum(token, starts[row])
    end = jnp.where(needed, jnp.minimum(token + size, ends[row]), begin)
    of_row = (shifts, starts + shifts, lengths)
    fields = [jnp.minimum(row, ends.shape[0] - 2), token, begin, end, *(x[row] for x in of_row)]
    order = jnp.argsort(jnp.where(needed, -(end + shifts[row]), 3 * total))
    return jnp.stack(fields, axis=1)[order]


def with_blocks(
    table: Int[Array, "tiles 7"], keys: int, window: int | None
) -> Int[Array, "tiles F"]:
    """Lines of a table as `Tile`; blocks are of `keys` keys, and begin at multiples of that."""
    row, token, begin, end, shift, position, length = table.T
    first, behind = begin + shift, jnp.where(begin < end, jnp.maximum(end + shift, 0), 0)
    stop = pl.cdiv(behind, keys)
    whole_end = jnp.maximum(first + 1, 0) // keys
    start, whole, oldest = jnp.zeros_like(stop), jnp.zeros_like(stop), jnp.zeros_like(stop)
    if window is not None:
        start = jnp.maximum(first - window + 1, 0) // keys
        whole = pl.cdiv(jnp.maximum(behind - window, 0), keys)
        oldest = jnp.maximum(position - window + 1, 0)
    start, whole = jnp.minimum(start, stop), jnp.minimum(whole, stop)
    whole_end = jnp.clip(whole_end, whole, stop)
    blocks = start, whole, whole_end, stop, oldest, length
    return jnp.stack(Tile(row, token, begin, end, shift, *blocks), axis=1)
