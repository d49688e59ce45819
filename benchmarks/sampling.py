"""Microseconds that choosing the tokens of a step takes, after the logits.

    python benchmarks/sampling.py [--rows 256 64] [--vocab 128256] [--calls 30]

Calls of what a step does are chained in one program, so that no launch is timed. Cases: greedy; one
setting for all rows; settings that differ from row to row; these with penalties and, in every
eighth row, a bias. Logits are Gaussian of deviation 1.3, so that a nucleus has tens of thousands of
tokens, or peaked. Prints one JSON line a case.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from quire.engine.batch import NUM_FIELDS, RowField
from quire.engine.buckets import Variant
from quire.engine.device_state import TokenTables
from quire.engine.step import pick_tokens

Settings = dict[RowField, float | Sequence[float]]

SHARED: Settings = {RowField.TEMPERATURE: 0.8, RowField.TOP_P: 0.95}
MIXED: Settings = {
    RowField.TEMPERATURE: [0.0, 0.6, 0.8, 1.0, 1.2],
    RowField.TOP_P: [1.0, 0.8, 0.9, 0.95],
    RowField.TOP_K: [0, 20, 50, 100],
    RowField.MIN_P: [0.0, 0.0, 0.05],
}
PENALIZED: Settings = {
    **MIXED,
    RowField.PRESENCE: [0.0, 0.5],
    RowField.FREQUENCY: [0.0, 0.0, 0.3],
    RowField.REPETITION: [1.0, 1.0, 1.1],
    RowField.BIASED: [0] * 7 + [1],
}
CASES: dict[str, tuple[Variant, Settings]] = {
    "greedy": (Variant.GREEDY, {}),
    "temperature": (Variant.SAMPLED, {RowField.TEMPERATURE: 0.8}),
    "shared top_p": (Variant.SAMPLED, SHARED),
    "mixed": (Variant.SAMPLED, MIXED),
    "mixed, penalties": (Variant.PENALIZED, PENALIZED),
}


def row_table(num_rows: int, settings: Settings) -> Array:
    """The row table a step gets: neutral, but for `settings`, each drawn from its values."""
    rng = np.random.default_rng(0)
    table = np.zeros((num_rows, NUM_FIELDS), np.int32)
    floats = table.view(np.float32)
    floats[:, [RowField.TOP_P, RowField.REPETITION]] = 1.0
    table[:, RowField.SLOT] = np.arange(num_rows)
    table[:, RowField.SAMPLES] = 1
    table[:, [RowField.KEY_0, RowField.KEY_1]] = rng.integers(0, 2**31, (num_rows, 2))
    for field, values in settings.items():
        column = floats if field >= RowField.TEMPERATURE else table
        column[:, field] = rng.choice(np.atleast_1d(values), num_rows)
    return jnp.asarray(table)


def make_logits(num_rows: int, vocab: int, peaked: bool) -> Array:
    """float32 noise, made on the device."""
    key = jax.random.key(1)
    logits = 1.3 * jax.random.normal(key, (num_rows, vocab))
    if peaked:
        best = jax.random.randint(key, (num_rows, 20), 0, vocab)
        logits = logits.at[jnp.arange(num_rows)[:, None], best].add(jnp.linspace(6.0, 14.0, 20))
    return logits


def make_tables(num_rows: int, vocab: int) -> TokenTables:
    """Some 500 tokens counted a row, and a few biased."""
    key = jax.random.key(2)
    shape = (num_rows + 1, vocab)
    counts = jax.random.bernoulli(key, min(1.0, 500 / vocab), shape).astype(jnp.uint16)
    bias = jnp.zeros(shape).at[:, :: max(1, vocab // 10)].set(-2.0)
    masks = jnp.full((num_rows + 1, -(-vocab // 32)), -1, jnp.int32)
    return TokenTables(counts.at[-1].set(0), bias.at[-1].set(0.0), masks)


def chain(variant: Variant, calls: int) -> Callable[..., Any]:
    """A program of `calls` calls, each of which depends on the tokens of the one before."""

    def run(logits: Array, rows: Array, tables: TokenTables) -> Any:
        def call(_: object, state: tuple[Array, TokenTables]) -> tuple[Array, TokenTables]:
            rows, tables = state
            x, rows = lax.optimization_barrier((logits, rows))
            tokens, _, new_tables = pick_tokens(variant, x, rows, tables, 0)
            rows = rows.at[:, RowField.LENGTH].add(1 + jnp.minimum(tokens, 0))
            return rows, tables if new_tables is None else new_tables

        return lax.fori_loop(0, calls, call, (rows, tables))

    return jax.jit(run, donate_argnums=(1, 2))


def microseconds(
    program: Callable[..., Any], calls: int, logits: Array, settings: Settings
) -> float:
    """Median over five runs of the program, for one call."""
    num_rows, vocab = logits.shape
    state = row_table(num_rows, settings), make_tables(num_rows, vocab)
    times = []
    for _ in range(7):
        jax.block_until_ready(state)
        started = time.perf_counter()
        state = jax.block_until_ready(program(logits, *state))
        times.append((time.perf_counter() - started) / calls)
    return statistics.median(times[2:]) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[256, 64])
    parser.add_argument("--vocab", type=int, default=128256)
    parser.add_argument("--calls", type=int, default=30, help="calls in one program")
    options = parser.parse_args()
    for num_rows in options.rows:
        programs = {variant: chain(variant, options.calls) for variant in Variant}
        for peaked in (False, True):
            logits = make_logits(num_rows, options.vocab, peaked)
            for name, (variant, settings) in CASES.items():
                took = microseconds(programs[variant], options.calls, logits, settings)
                result = {
                    "case": name,
                    "rows": num_rows,
                    "vocab": options.vocab,
                    "logits": "peaked" if peaked else "gaussian",
                    "us": round(took, 1),
                }
                print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
