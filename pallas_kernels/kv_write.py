"""Writes the K and V of a step into the pool, as a Mosaic kernel for Hopper GPUs.

`reference.kv_write` defines it. The kernel only moves memory: a block of tokens comes to shared
memory in one copy, and each of its rows leaves for its own slot. XLA's scatter takes some ten times
as long for a long prompt, and for one token it makes four kernels of it.
"""

import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

_TOKENS = 8
"""Tokens of a block: few, so that even a decode step keeps many SMs busy."""


def kv_write(
    k_pool: Float[Array, "P S Hkv D"],
    v_pool: Float[Array, "P S Hkv D"],
    k: Float[Array, "T Hkv D"],
    v: Float[Array, "T Hkv D"],
    index: Int[Array, " T"],
    *,
    interpret: bool = False,
) -> tuple[Float[Array, "P S Hkv D"], Float[Array, "P S Hkv D"]]:
    """`reference.kv_write` where k and v have the type of the pools.

    Written in place inside a jit that donates the pools. Needs jax 0.11.2, and heads of at most 256
    elements that are a multiple of 16 bytes.

    Args:
        interpret: run on any device, slowly.
    """
    from jax.experimental.pallas import mosaic_gpu as plgpu  # slow to import, and new in jax 0.11

    tokens, heads, width = k.shape
    block = math.gcd(tokens, _TOKENS)
    buffer = plgpu.SMEM((block, heads, width), k.dtype)
    pools = [jax.new_ref(pool.reshape(-1, heads, width)) for pool in (k_pool, v_pool)]

    def body(
        k_slots: jax.Ref, v_slots: jax.Ref, k_ref: jax.Ref, v_ref: jax.Ref, index_ref: jax.Ref
    ) -> None:
        first = jax.lax.axis_index("block") * block

        def move(k_rows: jax.Ref, v_rows: jax.Ref, arrived: jax.Ref) -> None:
            at = pl.ds(first, block)
            plgpu.copy_gmem_to_smem(k_ref.at[at], k_rows, arrived)
            plgpu.copy_gmem_to_smem(v_ref.at[at], v_rows, arrived)
            slots = [index_ref[first + token] for token in range(block)]
            plgpu.barrier_wait(arrived)
            for token, slot in enumerate(slots):
                plgpu.copy_smem_to_gmem(k_rows.at[token], k_slots.at[slot])
                plgpu.copy_smem_to_gmem(v_rows.at[token], v_slots.at[slot])
            plgpu.wait_smem_to_gmem(0)

        pl.run_scoped(move, buffer, buffer, plgpu.Barrier(num_arrivals=2))

    run = plgpu.kernel(
        body,
        grid=(tokens // block,),
        grid_names=("block",),
        interpret=plgpu.InterpretGPUParams(detect_races=True) if interpret else None,
        kernel_name="kv_write",
    )
    run(*pools, k, v, index.astype(jnp.int32))
    k_slots, v_slots = (jax.freeze(pool) for pool in pools)
    return k_slots.reshape(k_pool.shape), v_slots.reshape(v_pool.shape)
