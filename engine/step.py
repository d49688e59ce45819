"""The step: one forward pass and one sampled token a row, as one function to compile."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..models import functional
from ..models.batch import TokenBatch
from ..models.features import Features
from ..pallas_kernels.peer_memory import Mailbox
from . import sampler
from .batch import RowField
from .buckets import Program, Variant
from .device_state import DeviceState, RunnerConfig, TokenTables, patch_page_table


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepOutput:
    """What a step gives the host. `logprobs` and the hidden states come with FULL alone."""

    tokens: Int[Array, " R"]
    logprobs: sampler.LogprobResult | None = None
    hidden: Float[Array, "T E"] | None = None
    """Final hidden states of all tokens of the step, for log-probabilities of the prompt."""
    row_hidden: Float[Array, "R E"] | None = None
    """Those that were sampled from, for log-probabilities of the whole vocabulary."""


def make_step(
    graphdef: Any, program: Program, config: RunnerConfig
) -> Callable[..., tuple[DeviceState, TokenTables | None, StepOutput]]:
    """The function `program` compiles.

    (params, adapters, features, mailbox, state, tables, packed) -> (state, tables, output), where
    state and tables are donated; tables is None below the variant PENALIZED, adapters in a program
    without them, for which `graphdef` has no room for them, features in decode programs and those
    of models that do not see, and mailbox where `config` does not want one. `packed` is what
    `BatchBuilder.build` wrote.
    """
    layout, page_size = config.layout(program), config.page_size

    def step(
        params: dict[str, Array],
        adapters: dict[str, Array] | None,
        features: Float[Array, "F E"] | None,
        mailbox: Mailbox | None,
        state: DeviceState,
        tables: TokenTables | None,
        packed: Int[Array, " size"],
    ) -> tuple[DeviceState, TokenTables | None, StepOutput]:
        rows, patches, tokens, token_rows, media = layout.sections(packed)
        slots = rows[:, RowField.SLOT]
        page_table = patch_page_table(state.page_table, patches)
        if program.decode:
            tokens, token_rows = rows[:, RowField.TOKEN], jnp.arange(program.rows)
        with jax.named_scope("batch"):
            tokens = jnp.where(tokens < 0, state.last_token[slots[token_rows]], tokens)
            batch = token_batch(program, page_size, rows, token_rows, page_table[slots])
            batch = dataclasses.replace(batch, mailbox=mailbox)
            if adapters is not None:
                batch = dataclasses.replace(batch, adapters=rows[token_rows, RowField.ADAPTER])
            if config.rotates_by_three:
                stands = media[1:]
                if program.decode:
                    stands = jnp.tile(batch.positions + rows[:, RowField.ROTARY], (3, 1))
                batch = dataclasses.replace(batch, rotary_positions=stands)
        model = functional.bind(graphdef, params | (adapters or {}))
        seen = () if features is None else (Features(features, media[0]),)
        hidden, cache = model(tokens, batch, state.cache, *seen)
        row_hidden = hidden if program.decode else hidden[_last_tokens(batch)]
        with jax.named_scope("logits"):
            row_adapters = None if adapters is None else rows[:, RowField.ADAPTER]
            logits = model.logits(row_hidden, row_adapters, mailbox)
        with jax.named_scope("sample"):
            sampled, logprobs, tables = pick_tokens(
                program.variant, logits, rows, tables, config.top_logprobs
            )
        samples = rows[:, RowField.SAMPLES] == 1
        written = jnp.where(samples, slots, state.last_token.shape[0] - 1)
        last_token = state.last_token.at[written].set(sampled)
        output = StepOutput(sampled)
        if program.variant == Variant.FULL:
            output = StepOutput(sampled, logprobs, hidden, row_hidden)
        return DeviceState(cache, last_token, page_table), tables, output

    return step


def token_batch(
    program: Program,
    page_size: int,
    rows: Int[Array, "R fields"],
    token_rows: Int[Array, " T"],
    page_table: Int[Array, "R M"],
) -> TokenBatch:
    """Positions, write indices and ranges, worked out on the device from the row table."""
    lengths, starts = rows[:, RowField.LENGTH], rows[:, RowField.START]
    if program.decode:
        query_starts = jnp.arange(program.rows + 1)
        positions = starts
        real = lengths > 0
    else:
        first = rows[:, RowField.QUERY_START]
        total = first[-1] + lengths[-1] - starts[-1]
        query_starts = jnp.append(first, total)
        index = jnp.arange(program.tokens)
        real = index < total
        positions = jnp.where(real, starts[token_rows] + index - first[token_rows], 0)
    pages = page_table[token_rows, positions // page_size]
    write_index = jnp.where(real, pages * page_size + positions % page_size, 0)
    return TokenBatch(
        positions=positions,
        rows=token_rows,
        write_index=write_index,
        page_table=page_table,
        lengths=lengths,
        query_starts=query_starts,
        decode=program.decode,
        one_path=program.one_path,
    )


def _last_tokens(batch: TokenBatch) -> Int[Array, " R"]:
    return jnp.maximum(batch.query_starts[1:] - 1, 0)


def sampling_rows(rows: Int[Array, "R fields"]) -> sampler.SamplingRows:
    """The sampling columns of the row table, floats restored from their bits."""

    def number(field: RowField) -> Float[Array, " R"]:
        return jax.lax.bitcast_convert_type(rows[:, field], jnp.float32)

    return sampler.SamplingRows(
        temperature=number(RowField.TEMPERATURE),
        top_k=rows[:, RowField.TOP_K],
        top_p=number(RowField.TOP_P),
        min_p=number(RowField.MIN_P),
        presence=number(RowField.PRESENCE),
        frequency=number(RowField.FREQUENCY),
        repetition=number(RowField.REPETITION),
        key=jax.lax.bitcast_convert_type(rows[:, RowField.KEY_0 : RowField.KEY_1 + 1], jnp.uint32),
        position=rows[:, RowField.LENGTH],
    )


def pick_tokens(
    variant: Variant,
    logits: Float[Array, "R V"],
    rows: Int[Array, "R fields"],
    tables: TokenTables | None,
    top_logprobs: int,
) -> tuple[Int[Array, " R"], sampler.LogprobResult | None, TokenTables | None]:
    """Tokens, log-probabilities (FULL alone) and the tables, which count the tokens.

    `rows` is the row table of a step; `tables` is None below the variant PENALIZED.
    """
    if variant == Variant.GREEDY:
        return sampler.greedy(logits), None, None
    settings = sampling_rows(rows)
    if variant == Variant.SAMPLED or tables is None:
        return sampler.sample(logits, settings), None, None
    tokens = sampler.sample(_adjusted(logits, rows, settings, tables), settings)
    samples = rows[:, RowField.SAMPLES] == 1
    counts = sampler.update_counts(tables.counts, rows[:, RowField.SLOT], tokens, samples)
    tables = dataclasses.replace(tables, counts=counts)
    if variant == Variant.PENALIZED:
        return tokens, None, tables
    return tokens, sampler.logprobs(logits, tokens, top_logprobs), tables


def _adjusted(
    logits: Float[Array, "R V"],
    rows: Int[Array, "R fields"],
    settings: sampler.SamplingRows,
    tables: TokenTables,
) -> Float[Array, "R V"]:
    """Logits with bias, penalties and masks.

    Rows that have none read the null slot: it stays in the GPU's cache, and what an earlier owner
    left in the tables does not matter.
    """
    slots, null_slot = rows[:, RowField.SLOT], tables.counts.shape[0] - 1
    counted = jnp.where(settings.penalized, slots, null_slot)
    biased = jnp.where(rows[:, RowField.BIASED] == 1, slots, null_slot)
    masked = jnp.where(rows[:, RowField.MASKED] == 1, slots, null_slot)
    logits = sampler.adjust(logits, settings, tables.counts[counted], tables.bias[biased])
    return sampler.mask(logits, tables.masks[masked])
