"""The seam of what surrounds attention in a block: kernels where they pay, XLA everywhere else."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float

from ..pallas_kernels import block_reference
from . import hopper
from .layers import ACTIVATIONS, RMSNorm, matmul

_GATES = {
    "silu": "silu",
    "swish": "silu",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""Activations of `config.json` that the kernels know, by the kernels' names."""
_NORM_ROWS = 512
"""Up to here a kernel norms faster than XLA."""


def add_norm(
    norm: RMSNorm, x: Float[Array, "T E"], y: Float[Array, "T E"]
) -> tuple[Float[Array, "T E"], Float[Array, "T E"]]:
    """x + y, and norm(x + y)."""
    if x.shape[0] <= _NORM_ROWS and x.dtype == y.dtype and _on_hopper(x):
        from ..pallas_kernels import row_norm  # slow to import

        if row_norm.fits(x.shape[1], x.dtype):
            options = {"eps": norm.eps}
            run = _with_gradient(row_norm.add_rms_norm, block_reference.add_rms_norm, **options)
            return run(x, y, norm.weight[...])
    total = x + y
    return total, norm(total)


def gated_matmul(
    x: Float[Array, "T E"],
    w: Float[Array, "2 F E"],
    bias: Float[Array, "2 F"] | None,
    activation: str,
) -> Float[Array, "T F"]:
    """activation(x @ w[0].T + bias[0]) * (x @ w[1].T + bias[1])."""
    if bias is None and activation in _GATES and x.dtype == w.dtype and _on_hopper(x):
        from ..pallas_kernels import hopper_gated_matmul as hopper_matmul  # slow to import

        if hopper_matmul.fits(x.shape[0], w.shape[1], w.shape[2], x.dtype):
            kernel, twin = hopper_matmul.gated_matmul, block_reference.gated_matmul
            return _with_gradient(kernel, twin, activation=_GATES[activation])(x, w)
    y = matmul(x, w.reshape(-1, w.shape[-1])).reshape(-1, *w.shape[:-1])
    if bias is not None:
        y = y + bias[None]
    return ACTIVATIONS[activation](y[:, 0]) * y[:, 1]


def _on_hopper(x: Array) -> bool:
    return x.ndim == 2 and hopper.why_not(jax.default_backend(), str(x.dtype)) is None


def _with_gradient(
    kernel: Callable[..., Any], twin: Callable[..., Any], **options: object
) -> Callable[..., Any]:
    """`kernel` with the gradient of `twin`, both with `options`."""
    run = jax.custom_vjp(functools.partial(kernel, **options))
    run.defvjp(
        lambda *args: jax.vjp(functools.partial(twin, **options), *args),
        lambda pullback, gradient: pullback(gradient),
    )
    return run
