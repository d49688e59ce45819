"""Registers from and to global memory, in whatever pieces their layout has, in Mosaic kernels.

From jax 0.12 on a kernel does not compile, unless it says so, where these are not of whole cache
lines. Here they may be shorter: what counts is the latency of a few, not bandwidth.
"""

from typing import Any

import jax
from jaxtyping import Array


def load(gpu: Any, ref: jax.Ref, layout: Any = None) -> Array:
    """ref[...]; `gpu` is the module of Mosaic, `layout` one of its layouts, or None for any."""
    return gpu.load(ref, layout=layout, optimized=False)


def store(gpu: Any, ref: jax.Ref, x: Array) -> None:
    """ref[...] = x."""
    if hasattr(gpu, "store"):  # new in jax 0.12
        gpu.store(ref, x, optimized=False)
    else:
        ref[...] = x
