"""Whether the kernels for Hopper GPUs can run here, and how they are differentiated."""

import functools
from collections.abc import Callable
from typing import Any

import jax


def why_not(backend: str, dtype: str) -> str | None:
    """What keeps every kernel from running on arrays of `dtype`; None where nothing does."""
    if backend != "gpu":
        return f"JAX runs on {backend}"
    if jax.__version_info__ < (0, 11, 2):
        return f"the kernels need jax 0.11.2, this is {jax.__version__}"
    capability = getattr(jax.devices()[0], "compute_capability", "0")
    if int(float(capability)) != 9:
        return f"the kernels are for compute capability 9 (Hopper), this GPU has {capability}"
    if dtype not in ("bfloat16", "float16"):
        return f"the kernels know bfloat16 and float16, not {dtype}"
    return None


def with_gradient(
    kernel: Callable[..., Any], twin: Callable[..., Any], **options: object
) -> Callable[..., Any]:
    """`kernel` with the gradient of `twin`, both with `options`."""
    run = jax.custom_vjp(functools.partial(kernel, **options))
    run.defvjp(
        lambda *args: jax.vjp(functools.partial(twin, **options), *args),
        lambda pullback, gradient: pullback(gradient),
    )
    return run
