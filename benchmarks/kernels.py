"""Attention kernels beside the ceilings of the same GPU, measured in the same run.

    python benchmarks/kernels.py [--twin]

Shape of Llama-3.1-8B's attention, bfloat16, pages of 64 tokens in random order. Decode is given in
TB/s of K and V read, prefill in TFLOP/s of the causal half, the KV write in TB/s read and written.
Prints one JSON line a case.
"""

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from llama_8b import conditions

from quire.pallas_kernels import hopper_decode, hopper_prefill, kv_write, reference

HEADS, KV_HEADS, SIZE, PAGE = 32, 8, 128, 64
SCALE = SIZE**-0.5
REPEATS = 8
"""Calls in one program, each fed with the result of the last, so that no launch is timed."""


def seconds(call: Callable[..., Array], x: Array, *args: Array) -> float:
    """Median time of one call x = call(x, *args)."""

    @jax.jit
    def chain(x: Array, *args: Array) -> Array:
        for _ in range(REPEATS):
            x = jax.lax.optimization_barrier(call(x, *args))
        return x

    chain(x, *args).block_until_ready()
    times = []
    for _ in range(10):
        started = time.perf_counter()
        chain(x, *args).block_until_ready()
        times.append((time.perf_counter() - started) / REPEATS)
    return statistics.median(times)


def normal(seed: int, *shape: int) -> Array:
    """bfloat16 noise, made on the device."""
    return jax.random.normal(jax.random.key(seed), shape, jnp.bfloat16)


def pool(rows: int, length: int, max_len: int) -> tuple[Array, Array, Array, Array]:
    """K, V, page table [rows, max_len / PAGE] and lengths of rows of `length` tokens."""
    columns = -(-length // PAGE)
    pages = rows * columns + 1
    table = np.zeros((rows, max_len // PAGE), np.int32)
    order = np.random.default_rng(0).permutation(pages - 1) + 1
    table[:, :columns] = order.reshape(rows, columns)
    k, v = (normal(seed, pages, PAGE, KV_HEADS, SIZE) for seed in (1, 2))
    return k, v, jnp.asarray(table), jnp.full(rows, length, jnp.int32)


def report(name: str, measured: float, unit: str, took: float) -> None:
    print(
        json.dumps({"case": name, unit: round(measured, 3), "us": round(took * 1e6, 1)}), flush=True
    )


def ceilings() -> None:
    """A large copy and a large matrix product."""
    x = normal(0, 2**30)
    took = seconds(lambda x: x + jnp.bfloat16(1), x)
    report("copy", 2 * x.nbytes / took / 1e12, "TB/s", took)
    a, b = normal(1, 8192, 8192), normal(2, 8192, 8192)
    took = seconds(lambda a, b: jnp.dot(a, b) * jnp.bfloat16(0.01), a, b)
    report("matmul", 2 * 8192**3 / took / 1e12, "TFLOP/s", took)


def decode(module: ModuleType, rows: int, length: int) -> None:
    k, v, table, lengths = pool(rows, length, max(length, 10240))
    took = seconds(
        lambda q, *args: module.paged_decode(q, *args, scale=SCALE),
        normal(3, rows, HEADS, SIZE), k, v, table, lengths,
    )  # fmt: skip
    report(
        f"decode {rows}x{length}", 4 * rows * length * KV_HEADS * SIZE / took / 1e12, "TB/s", took
    )


def prefill(module: ModuleType, rows: int, length: int) -> None:
    k, v, table, lengths = pool(rows, length, 10240)
    starts = jnp.arange(rows + 1, dtype=jnp.int32) * length
    took = seconds(
        lambda q, *args: module.paged_prefill(q, *args, scale=SCALE),
        normal(3, rows * length, HEADS, SIZE), k, v, table, lengths, starts,
    )  # fmt: skip
    operations = 4 * rows * length * length / 2 * HEADS * SIZE
    report(f"prefill {rows}x{length}", operations / took / 1e12, "TFLOP/s", took)


def write(module: ModuleType, tokens: int) -> None:
    k_pool, v_pool, table, _ = pool(1, max(tokens, 2**17), 2**17)
    slots = (table[0, : -(-tokens // PAGE), None] * PAGE + jnp.arange(PAGE)).reshape(-1)[:tokens]
    k, v = (normal(seed, tokens, KV_HEADS, SIZE) for seed in (4, 5))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def chain(k_pool: Array, v_pool: Array, k: Array, v: Array) -> tuple[Array, Array]:
        for _ in range(REPEATS):
            k_pool, v_pool = module.kv_write(k_pool, v_pool, k, v, slots)
            k_pool, v_pool = jax.lax.optimization_barrier((k_pool, v_pool))
        return k_pool, v_pool

    times = []
    for _ in range(11):
        started = time.perf_counter()
        k_pool, v_pool = jax.block_until_ready(chain(k_pool, v_pool, k, v))
        times.append((time.perf_counter() - started) / REPEATS)
    took = statistics.median(times[1:])
    report(f"kv_write {tokens}", 4 * k.nbytes / took / 1e12, "TB/s", took)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--twin", action="store_true", help="time the jnp twins, not the kernels")
    twin = parser.parse_args().twin
    print(json.dumps(conditions()), flush=True)
    ceilings()
    for rows, length in ((1, 1024), (64, 1024), (256, 768), (4, 8192), (1, 131072)):
        decode(reference if twin else hopper_decode, rows, length)
    for rows, length in ((1, 8192), (8, 1024), (64, 128)):
        prefill(reference if twin else hopper_prefill, rows, length)
    for tokens in (1, 64, 8192):
        write(reference if twin else kv_write, tokens)


if __name__ == "__main__":
    main()
