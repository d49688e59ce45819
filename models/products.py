"""The seam of matrix products: a kernel for the few rows of a decode step, XLA for all others."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..pallas_kernels import hopper_matmul, reference
from . import hopper

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_fast": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
}
"""Activation functions by the names of `config.json`."""

_GATES = {
    "silu": "silu",
    "swish": "silu",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""Those the kernel knows, by its own names."""


def precision(dtype: DTypeLike) -> jax.lax.Precision:
    """Full precision for float32 operands (a GPU would round them to TF32), else the default."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else jax.lax.Precision.DEFAULT


def matmul(
    x: Float[Array, "*N E"],
    w: Float[Array, "O E"],
    residual: Float[Array, "*N O"] | None = None,
    out_dtype: DTypeLike | None = None,
) -> Float[Array, "*N O"]:
    """x @ w.T + residual in the weight's type; the result in `out_dtype`, by default that type."""
    x, out_dtype = x.astype(w.dtype), jnp.dtype(out_dtype or w.dtype)
    if _kernel_fits(x, *w.shape):
        return _matmul_kernel(x, w, residual, out_dtype)
    y = jax.lax.dot_general(
        x,
        w,
        (((x.ndim - 1,), (1,)), ((), ())),
        precision=precision(w.dtype),
        preferred_element_type=out_dtype,
    )
    return y if residual is None else residual + y


def gated_matmul(
    x: Float[Array, "T E"],
    w: Float[Array, "2 F E"],
    bias: Float[Array, "2 F"] | None,
    activation: str,
) -> Float[Array, "T F"]:
    """activation(x @ w[0].T + bias[0]) * (x @ w[1].T + bias[1])."""
    if bias is None and activation in _GATES and _kernel_fits(x, *w.shape[1:], gated=True):
        return _gated_kernel(x.astype(w.dtype), w, _GATES[activation])
    y = matmul(x, w.reshape(-1, w.shape[-1])).reshape(-1, *w.shape[:-1])
    if bias is not None:
        y = y + bias[None]
    return ACTIVATIONS[activation](y[:, 0]) * y[:, 1]


def _kernel_fits(x: Float[Array, "*N E"], out: int, width: int, *, gated: bool = False) -> bool:
    if x.ndim != 2 or hopper.why_not(jax.default_backend(), str(x.dtype)) is not None:
        return False
    return hopper_matmul.fits(x.shape[0], out, width, x.dtype, gated=gated)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _matmul_kernel(x: Array, w: Array, residual: Array | None, out_dtype: jnp.dtype) -> Array:
    return hopper_matmul.matmul(x, w, residual=residual, out_dtype=out_dtype)


def _matmul_twin(x: Array, w: Array, residual: Array | None, out_dtype: jnp.dtype) -> Array:
    return reference.matmul(x, w, residual=residual, out_dtype=out_dtype)


_matmul_kernel.defvjp(
    lambda x, w, residual, out_dtype: jax.vjp(
        functools.partial(_matmul_twin, out_dtype=out_dtype), x, w, residual
    ),
    lambda out_dtype, pullback, gradient: pullback(gradient),
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _gated_kernel(x: Array, w: Array, activation: str) -> Array:
    return hopper_matmul.gated_matmul(x, w, activation=activation)


_gated_kernel.defvjp(
    lambda x, w, activation: jax.vjp(
        functools.partial(reference.gated_matmul, activation=activation), x, w
    ),
    lambda activation, pullback, gradient: pullback(gradient),
)
