"""Matrix products with the weights of checkpoints, and the activations between them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

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
    y = jax.lax.dot_general(
        x.astype(w.dtype),
        w,
        (((x.ndim - 1,), (1,)), ((), ())),
        precision=precision(w.dtype),
        preferred_element_type=out_dtype or w.dtype,
    )
    return y if residual is None else residual + y


def gated_matmul(
    x: Float[Array, "T E"],
    w: Float[Array, "2 F E"],
    bias: Float[Array, "2 F"] | None,
    activation: str,
) -> Float[Array, "T F"]:
    """activation(x @ w[0].T + bias[0]) * (x @ w[1].T + bias[1])."""
    y = matmul(x, w.reshape(-1, w.shape[-1])).reshape(-1, *w.shape[:-1])
    if bias is not None:
        y = y + bias[None]
    return ACTIVATIONS[activation](y[:, 0]) * y[:, 1]
