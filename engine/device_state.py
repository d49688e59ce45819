"""What lives on the device between steps, and the small programs that edit it."""

import dataclasses
import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from ..models.shards import spec_of
from .batch import Layout
from .buckets import Buckets, Encoding, Program

if TYPE_CHECKING:
    from .model import ModelSpec


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DeviceState:
    """The state a step reads and returns. Every step donates it: never keep an old one.

    N is the number of slots; row N is the null slot that padding rows own.
    """

    cache: tuple[tuple[Float[Array, "P S Hkv D"], Float[Array, "P S Hkv D"]], ...]
    """K and V of each layer. Page 0 is the null page. Starts as zeros."""
    last_token: Int[Array, " N+1"]
    """The token each slot sampled last."""
    page_table: Int[Array, "N+1 M"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenTables:
    """Vocabulary-wide rows of each slot, from the variant PENALIZED on. Donated like `DeviceState`.

    Rows of a slot mean something while its sequence has penalties or a bias; those of the null slot
    are always zero.
    """

    counts: Int[Array, "N+1 V"]
    """Twice the times a token was output, plus 1 where the prompt has it. uint16, which halves what
    a step reads: a token counts 32,767 times at most."""
    bias: Float[Array, "N+1 V"]
    """Added to the logits; -inf forbids a token."""
    masks: Int[Array, "N+1 W"]
    """One bit for each token, 1 where it may be next: bit v % 32 of word v / 32. Meaningful while
    the sequence has a grammar; all ones for the null slot."""


@dataclasses.dataclass(frozen=True)
class RunnerConfig:
    """The sizes an engine's device state and programs are built for. Counts, not bytes."""

    buckets: Buckets
    num_pages: int
    page_size: int
    top_logprobs: int
    compile_ahead: bool
    adapters: tuple[int, int] | None = None
    """Slots for adapters and their rank; None without."""
    feature_rows: int = 0
    """Rows for features of media; 0 for models of text alone."""
    encodings: tuple[Encoding, ...] = ()
    """The programs that make features, those of a kind ascending."""
    media: int = 0
    """Columns that say of each token of a mixed step how it is seen, as in `Layout`."""
    mailbox: bool = False
    """Whether devices add up what each has through a `Mailbox`, and not through XLA."""

    @property
    def num_slots(self) -> int:
        return self.buckets.max_num_seqs

    @property
    def rotates_by_three(self) -> bool:
        return self.media > 1

    def layout(self, program: Program) -> Layout:
        """How the buffer of a step is packed."""
        return Layout.of(program, self.page_size, self.media)


def state_specs(spec: "ModelSpec") -> DeviceState:
    """How the state lies on a mesh: KV heads as those of the weights, the rest everywhere."""
    heads = spec_of(("pages", "tokens", "kv_heads"), (1, 1, spec.config.num_kv_heads), spec.devices)
    every = PartitionSpec()
    pools = ((heads, heads),) * spec.config.num_layers
    return DeviceState(cache=pools, last_token=every, page_table=every)


def new_state(spec: "ModelSpec", config: RunnerConfig) -> DeviceState:
    """An empty state, made on the device. Zeros: 0 * NaN would leak from an unwritten page."""
    model = spec.config
    shape = (config.num_pages, config.page_size, model.num_kv_heads, spec.cache_head_dim)
    pages_per_row = -(-model.max_model_len // config.page_size)
    zeros = functools.partial(jnp.zeros, shape, spec.cache_dtype)
    return DeviceState(
        cache=tuple((zeros(), zeros()) for _ in range(model.num_layers)),
        last_token=jnp.zeros(config.num_slots + 1, jnp.int32),
        page_table=jnp.zeros((config.num_slots + 1, pages_per_row), jnp.int32),
    )


def new_features(spec: "ModelSpec", config: RunnerConfig) -> Float[Array, "F E"] | None:
    """Room for features of media; None for models of text alone."""
    if not config.feature_rows:
        return None
    return jnp.zeros((config.feature_rows, spec.config.hidden_size), spec.dtype)


def new_tables(spec: "ModelSpec", config: RunnerConfig) -> TokenTables:
    """Neutral tables: no counts, no bias, nothing masked."""
    slots, vocab = config.num_slots + 1, spec.config.vocab_size
    return TokenTables(
        counts=jnp.zeros((slots, vocab), jnp.uint16),
        bias=jnp.zeros((slots, vocab), jnp.float32),
        masks=jnp.full((slots, -(-vocab // 32)), -1, jnp.int32),
    )


def patch_page_table(table: Int[Array, "N+1 M"], patches: Int[Array, "K 3"]) -> Int[Array, "N+1 M"]:
    """Writes (slot, index, page) entries; those with a slot beyond the table are padding."""
    return table.at[patches[:, 0], patches[:, 1]].set(patches[:, 2], mode="drop")


def apply_patches(state: DeviceState, patches: Int[Array, "K 3"]) -> DeviceState:
    """`patch_page_table` as a program, for what a step has no room for."""
    return dataclasses.replace(state, page_table=patch_page_table(state.page_table, patches))


def write_table_rows(
    tables: TokenTables, slot: Int[Array, ""], counts: Int[Array, " V"], bias: Float[Array, " V"]
) -> TokenTables:
    """Replaces both rows of a slot."""
    counts, bias = tables.counts.at[slot].set(counts), tables.bias.at[slot].set(bias)
    return dataclasses.replace(tables, counts=counts, bias=bias)


def write_bias_row(
    tables: TokenTables, slot: Int[Array, ""], bias: Float[Array, " V"]
) -> TokenTables:
    """Replaces the bias of a slot and keeps its counts."""
    return dataclasses.replace(tables, bias=tables.bias.at[slot].set(bias))


def write_mask_rows(
    tables: TokenTables, slots: Int[Array, " K"], masks: Int[Array, "K W"]
) -> TokenTables:
    """Replaces the masks of slots; one beyond the table is padding."""
    return dataclasses.replace(tables, masks=tables.masks.at[slots].set(masks, mode="drop"))
