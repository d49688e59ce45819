"""Kernels beside the ceilings of the same GPU, measured in the same run.

    python benchmarks/kernels.py [--twin]

Shapes of Llama-3.1-8B, bfloat16, pages of 64 tokens in random order. Decode is given in TB/s of K
and V read, prefill in TFLOP/s of the causal half, what writes K and V and what norms in TB/s read
and written, the gated product in TB/s of its weight and in TFLOP/s. Prints one JSON line a case.
"""

import argparse
import functools
import itertools
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gpu_profile import device_events
from jaxtyping import Array
from llama_8b import conditions

from quire.pallas_kernels import (
    block_reference,
    hopper_decode,
    hopper_matmul,
    hopper_prefill,
    kv_write,
    reference,
    rope_write,
    row_norm,
)

HEADS, KV_HEADS, SIZE, PAGE = 32, 8, 128, 64
WIDTH, INNER = 4096, 14336
SCALE = SIZE**-0.5
RUNS = 10


def seconds(kernels: str, call: Callable[..., Any], *args: Any) -> float:
    """Time on the GPU of one call: of its kernels whose names have `kernels` in them.

    By the profiler, since launches would add some 25 us to what a clock measures.
    """

    def run() -> None:
        for _ in range(RUNS):
            jax.block_until_ready(call(*args))

    run()
    events = device_events(run)
    if not any(kernels in name for _, _, name in events):
        raise LookupError(
            f"no kernel named {kernels!r} ran, but { ({name for *_, name in events}) }"
        )
    return sum(took for _, took, name in events if kernels in name) / RUNS / 1e6


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
    took = seconds("", jax.jit(lambda x: x + jnp.bfloat16(1)), x)
    report("copy", 2 * x.nbytes / took / 1e12, "TB/s", took)
    a, b = normal(1, 8192, 8192), normal(2, 8192, 8192)
    took = seconds("", jax.jit(jnp.dot), a, b)
    report("matmul", 2 * 8192**3 / took / 1e12, "TFLOP/s", took)


def decode(twin: bool, rows: int, length: int) -> None:
    k, v, table, lengths = pool(rows, length, max(length, 10240))
    attend = reference.paged_decode if twin else hopper_decode.paged_decode
    call = jax.jit(functools.partial(attend, scale=SCALE))
    name = "" if twin else "paged_decode"
    took = seconds(name, call, normal(3, rows, HEADS, SIZE), k, v, table, lengths)
    report(
        f"decode {rows}x{length}", 4 * rows * length * KV_HEADS * SIZE / took / 1e12, "TB/s", took
    )


def prefill(twin: bool, rows: int, length: int) -> None:
    k, v, table, lengths = pool(rows, length, 10240)
    starts = jnp.arange(rows + 1, dtype=jnp.int32) * length
    attend = reference.paged_prefill if twin else hopper_prefill.paged_prefill
    call = jax.jit(functools.partial(attend, scale=SCALE))
    name = "" if twin else "paged_prefill"
    took = seconds(name, call, normal(3, rows * length, HEADS, SIZE), k, v, table, lengths, starts)
    operations = 4 * rows * length * length / 2 * HEADS * SIZE
    report(f"prefill {rows}x{length}", operations / took / 1e12, "TFLOP/s", took)


def write(twin: bool, tokens: int) -> None:
    k_pool, v_pool, table, _ = pool(1, 2**17, 2**17)
    slots = (table[0, :, None] * PAGE + jnp.arange(PAGE)).reshape(-1)[:tokens]
    k, v = (normal(seed, tokens, KV_HEADS, SIZE) for seed in (4, 5))
    pools = [k_pool, v_pool]
    kernel = jax.jit(reference.kv_write if twin else kv_write.kv_write, donate_argnums=(0, 1))

    def call() -> list[Array]:
        pools[:] = kernel(*pools, k, v, slots)
        return pools

    took = seconds("" if twin else "kv_write", call)
    report(f"kv_write {tokens}", 4 * k.nbytes / took / 1e12, "TB/s", took)


def rotate_and_write(twin: bool, tokens: int) -> None:
    k_pool, v_pool, table, _ = pool(1, 2**17, 2**17)
    slots = (table[0, :, None] * PAGE + jnp.arange(PAGE)).reshape(-1)[:tokens]
    qkv = normal(4, tokens, KV_HEADS, HEADS // KV_HEADS + 2, SIZE)
    angles = jax.random.normal(jax.random.key(5), (tokens, SIZE // 2))
    pools = [k_pool, v_pool]
    write = block_reference.rope_write if twin else rope_write.rope_write
    kernel = jax.jit(write, donate_argnums=(0, 1))

    def call() -> list[Array]:
        _, *pools[:] = kernel(*pools, qkv, jnp.cos(angles), jnp.sin(angles), slots)
        return pools

    took = seconds("" if twin else "rope_write", call)
    report(f"rope_write {tokens}", 2 * qkv.nbytes / took / 1e12, "TB/s", took)


def norm(twin: bool, tokens: int) -> None:
    x, y, weight = normal(6, tokens, WIDTH), normal(7, tokens, WIDTH), normal(8, WIDTH)
    add = block_reference.add_rms_norm if twin else row_norm.add_rms_norm
    took = seconds(
        "" if twin else "add_rms_norm", jax.jit(functools.partial(add, eps=1e-5)), x, y, weight
    )
    report(f"add_rms_norm {tokens}", 4 * x.nbytes / took / 1e12, "TB/s", took)


def gate(twin: bool, tokens: int) -> None:
    # several weights, since L2 would hold a good part of one
    ws = itertools.cycle([normal(seed, 2, INNER, WIDTH) / WIDTH**0.5 for seed in (9, 10, 11)])
    x = normal(12, tokens, WIDTH)
    multiply = block_reference.gated_matmul if twin else hopper_matmul.gated_matmul
    kernel = jax.jit(functools.partial(multiply, activation="silu"))
    took = seconds("" if twin else "gated_matmul", lambda: kernel(x, next(ws)))
    work = 4 * INNER * WIDTH
    report(f"gated_matmul {tokens}", work * tokens / took / 1e12, "TFLOP/s", took)
    report(f"gated_matmul {tokens}", work / took / 1e12, "TB/s", took)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--twin", action="store_true", help="time the jnp twins, not the kernels")
    twin = parser.parse_args().twin
    if jax.default_backend() != "gpu":
        parser.error(f"this needs an NVIDIA GPU; JAX runs on {jax.default_backend()}")
    print(json.dumps({"benchmark": "kernels"} | conditions()), flush=True)
    ceilings()
    for rows, length in ((1, 300), (1, 1024), (64, 1024), (256, 768), (4, 8192), (1, 131072)):
        decode(twin, rows, length)
    for rows, length in ((1, 8192), (8, 1024), (64, 128)):
        prefill(twin, rows, length)
    for tokens in (1, 64, 8192):
        write(twin, tokens)
        rotate_and_write(twin, tokens)
    for tokens in (1, 64, 512):
        norm(twin, tokens)
    for tokens in (64, 256, 8192):
        gate(twin, tokens)


if __name__ == "__main__":
    main()
