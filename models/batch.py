"""What one forward pass needs to know about its tokens, as one pytree."""

import dataclasses

import jax
from jaxtyping import Array, Int

from ..pallas_kernels.peer_memory import Mailbox


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenBatch:
    """Where the T tokens of a step stand. Letters: T tokens, R rows (requests), M pages per row.

    Tokens of one row are contiguous and in order; rows are packed without gaps from token 0; what
    is left of T and R is padding. A padding token has `row` R - 1, position 0 and its
    `write_index` inside page 0 (the null page). A padding row has length 0 and an empty query
    range.
    """

    positions: Int[Array, " T"]
    """Absolute position of each token in its sequence."""
    rows: Int[Array, " T"]
    """The row each token belongs to."""
    write_index: Int[Array, " T"]
    """Where a token's K and V go: page * page_size + offset. Unique except inside the null page."""
    page_table: Int[Array, "R M"]
    """The pages of each row, in order; unused entries are 0."""
    lengths: Int[Array, " R"]
    """Tokens in the pool that a row may look at, those of this step included; 0 for padding."""
    query_starts: Int[Array, " R+1"]
    """Row r owns the tokens query_starts[r] to query_starts[r + 1]; padding rows repeat the end."""
    adapters: Int[Array, " T"] | None = dataclasses.field(default=None, kw_only=True)
    """The slot of each token's adapter, the number of slots for none; None where there are none."""
    rotary_positions: Int[Array, "3 T"] | None = dataclasses.field(default=None, kw_only=True)
    """Positions along time, height and width, of models that rotate by them (`models.mrope`)."""
    mailbox: Mailbox | None = dataclasses.field(default=None, kw_only=True)
    """Where devices that share the model may put what they have of a sum; None: XLA adds it up."""
    decode: bool = dataclasses.field(metadata={"static": True})
    """True where every row has exactly one token: T == R and rows == arange(R). Static."""
    one_path: bool = dataclasses.field(default=False, metadata={"static": True})
    """True where every row of a mixed step must take the same way, whatever it is. Static."""


def adapters_of(batch: TokenBatch | None) -> Int[Array, " T"] | None:
    """The slot of each token's adapter; None, without a batch, is the first for all."""
    return None if batch is None else batch.adapters


def mailbox_of(batch: TokenBatch | None) -> Mailbox | None:
    """That of the step, if it has one."""
    return None if batch is None else batch.mailbox
