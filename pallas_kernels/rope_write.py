"""Rotates the queries and keys of a step and writes its K and V into the pool, for Hopper GPUs.

`block_reference.rope_write` defines it: a Mosaic kernel that moves memory, with little arithmetic.
A block of threads serves KV heads of a token. It asks for all that it needs at once, straight
into registers, rotates there, and writes straight to where each vector belongs: shared memory would
be one more stop, and for few tokens its latency is what counts. The two halves of heads that are
rotated with one another are arrays of the same layout, so that pairs meet in one thread.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

_SMS = 132
"""Of an H100 or H200."""
_ELEMENTS = 8192
"""Of a block, at most: with the factors and what becomes of them they fill the registers."""
_LANES, _WARPS = 32, 4
_VECTOR = 8
"""Elements of 16 bits that one instruction moves, at most."""


def rope_write(
    k_pool: Float[Array, "P S Hkv D"],
    v_pool: Float[Array, "P S Hkv D"],
    qkv: Float[Array, "T Hkv G+2 D"],
    cos: Float[Array, "T X/2"],
    sin: Float[Array, "T X/2"],
    index: Int[Array, " T"],
    *,
    interpret: bool = False,
) -> tuple[Float[Array, "T Hkv*G D"], Float[Array, "P S Hkv D"], Float[Array, "P S Hkv D"]]:
    """`block_reference.rope_write` where qkv has the 16-bit type of the pools.

    The pools are written in place inside a jit that donates them. Of tokens with the same index
    parts of any may be kept. Needs jax 0.11.2, and D a multiple of 8.

    Args:
        cos, sin: in float32.
        interpret: run on any device, slowly.
    """
    from jax.experimental.pallas import mosaic_gpu as plgpu  # slow to import, and new in jax 0.11

    tokens, kv_heads, vectors, width = qkv.shape
    block, heads = _block(tokens, kv_heads, vectors * width)
    pools = [jax.new_ref(pool.reshape(-1, kv_heads, width)) for pool in (k_pool, v_pool)]

    def body(*refs: Any) -> None:
        at = pl.ds(lax.axis_index("heads") * heads, heads)
        kernel, first = _Kernel(plgpu, at, *refs), lax.axis_index("tokens") * block
        slots = [kernel.slots[first + n] for n in range(block)]
        writes = [kernel.read(first + n, slot) for n, slot in enumerate(slots)]
        for write in writes:
            write()

    run = plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct((tokens, kv_heads, vectors - 2, width), qkv.dtype),
        grid=(kv_heads // heads, tokens // block),  # only the last may be above 65535
        grid_names=("heads", "tokens"),
        # they protect shared memory, of which there is none
        compiler_params=plgpu.CompilerParams(unsafe_no_auto_barriers=True),
        interpret=plgpu.InterpretGPUParams(detect_races=True) if interpret else None,
        kernel_name="rope_write",
    )
    factors = cos, sin
    # twice: queries and keys want them in different layouts, and one load has only one
    q = run(*pools, qkv, factors, factors, index.astype(jnp.int32))
    k_slots, v_slots = (jax.freeze(pool) for pool in pools)
    q = q.reshape(tokens, -1, width)
    return q, k_slots.reshape(k_pool.shape), v_slots.reshape(v_pool.shape)


def _block(tokens: int, kv_heads: int, size: int) -> tuple[int, int]:
    """Tokens and KV heads of a thread block, where a KV head's vectors have `size` elements.

    Heads are spread over all SMs, but in pairs at least: the fewer, the shorter the vectors that
    instructions move.
    """
    most = min(_ELEMENTS // size, max(pl.cdiv(tokens * kv_heads, _SMS), 2))
    divisors = (n for n in range(1, kv_heads + 1) if kv_heads % n == 0)
    return 1, max(n for n in divisors if n <= max(most, 1))


class _Kernel(NamedTuple):
    gpu: Any
    """The module of Mosaic."""
    heads: Any
    """The KV heads of this block."""
    k_slots: jax.Ref
    v_slots: jax.Ref
    qkv: jax.Ref
    q_factors: tuple[jax.Ref, jax.Ref]
    """cos and sin."""
    k_factors: tuple[jax.Ref, jax.Ref]
    slots: jax.Ref
    q: jax.Ref

    def read(self, token: Array, slot: Array) -> Callable[[], None]:
        """Asks for what a token needs, and returns what writes it once it is there."""
        groups, heads = self.q.shape[2], self.heads
        q, k, v = (self.qkv.at[token, heads, at] for at in (slice(0, groups), groups, groups + 1))
        q_factors, k_factors = (
            [ref.at[token] for ref in refs] for refs in (self.q_factors, self.k_factors)
        )
        parts = [
            *self.rotated(q, self.q.at[token, heads], q_factors),
            *self.rotated(k, self.k_slots.at[slot, heads], k_factors),
            self.moved(v, self.v_slots.at[slot, heads]),
        ]

        def write() -> None:
            for part in parts:
                part()

        return write

    def rotated(self, source: Any, target: Any, factors: list[Any]) -> list[Callable[[], None]]:
        half = factors[0].shape[-1]
        first, second = (self.load(_columns(source, n * half, half)) for n in range(2))
        cos, sin = (self.load_factors(ref, first.shape) for ref in factors)

        def write() -> None:
            pair = [x.astype(jnp.float32) for x in (first, second)]
            c, s = (lax.broadcast_in_dim(f, first.shape, [first.ndim - 1]) for f in (cos, sin))
            turned = pair[0] * c - pair[1] * s, pair[1] * c + pair[0] * s
            for n, x in enumerate(turned):
                _columns(target, n * half, half)[...] = x.astype(first.dtype)

        rest = source.shape[-1] - 2 * half
        if not rest:
            return [write]
        return [write, self.moved(*(_columns(ref, 2 * half, rest) for ref in (source, target)))]

    def moved(self, source: Any, target: Any) -> Callable[[], None]:
        x = self.load(source)

        def write() -> None:
            target[...] = x

        return write

    def load(self, ref: Any) -> Array:
        return self.gpu.load(ref, layout=_layout(self.gpu, ref.shape), optimized=False)

    def load_factors(self, ref: Any, shape: tuple[int, ...]) -> Array:
        """Those of a row, in the threads where an array of this shape has their columns."""
        layout = _layout(self.gpu, shape).reduce(tuple(range(len(shape) - 1)))
        return self.gpu.load(ref, layout=layout, optimized=False)


def _columns(ref: Any, first: int, count: int) -> Any:
    return ref.at[(slice(None),) * (len(ref.shape) - 1) + (slice(first, first + count),)]


def _layout(gpu: Any, shape: tuple[int, ...]) -> Any:
    """Deals an array out to the threads of a warpgroup, in vectors as long as leave none idle.

    Neighbours in a warp hold neighbours in a row, so that accesses are of whole sectors.
    """
    from jax.experimental.mosaic.gpu import fragmented_array as mosaic

    rank, powers = len(shape), [n & -n for n in shape]  # what can be cut in halves
    vector = min(_VECTOR, powers[-1], max(math.prod(powers) // (_LANES * _WARPS), 1))
    powers[-1] //= vector
    lanes, warps, lanes_left, warps_left = [1] * rank, [1] * rank, _LANES, _WARPS
    for n in reversed(range(rank)):
        lanes[n] = min(powers[n], lanes_left)
        warps[n] = min(powers[n] // lanes[n], warps_left)
        lanes_left, warps_left = lanes_left // lanes[n], warps_left // warps[n]
    warp_tile = [*lanes[:-1], lanes[-1] * vector]
    tiles = [n * m for n, m in zip(warps, warp_tile, strict=True)], warp_tile, [vector]
    copies = [(mosaic.Replicated(n),) if n > 1 else () for n in (warps_left, lanes_left)]
    layout = mosaic.TiledLayout(
        mosaic.Tiling(tuple(map(tuple, tiles))),
        (*range(-2 * rank - 1, -rank - 1), *copies[0]),
        (*range(-rank - 1, -1), *copies[1]),
        vector_dim=-1,
        _check_canonical=False,
    ).canonicalize()
    return gpu.Layout.TILED(layout.tiling, layout.warp_dims, layout.lane_dims, layout.vector_dim)
