"""Layers the architectures share. A weight is declared once: shape, axes, type and initialiser."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ..errors import UnsupportedModelError, nearest
from . import shards

if TYPE_CHECKING:
    from .low_rank import LowRank

Axes = tuple[str, ...]
"""Logical names of a weight's dimensions: vocab, embed, mlp, heads, kv_heads, head_dim, ..."""


def _normal(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    return 0.02 * jax.random.normal(key, shape, dtype)


def _ones(_: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    return jnp.ones(shape, dtype)


def _zeros(_: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    return jnp.zeros(shape, dtype)


INITIALIZERS: dict[str, Callable[[Array, tuple[int, ...], DTypeLike], Array]] = {
    "normal": _normal,
    "ones": _ones,
    "zeros": _zeros,
}

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


def check_activation(name: str) -> str:
    """`name`, if it is known.

    Raises:
        UnsupportedModelError: there is no such activation; lists those there are.
    """
    if name not in ACTIVATIONS:
        raise UnsupportedModelError(
            f"The activation function {name!r} is not supported; supported are "
            f"{', '.join(ACTIVATIONS)}.{nearest(name, ACTIVATIONS)}"
        )
    return name


def weight(
    shape: tuple[int, ...],
    axes: Axes,
    *,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
    init: str = "normal",
) -> nnx.Param[Array]:
    """A parameter with its logical `axes` (one a dimension) and the name of its initialiser.

    Both are static metadata of the parameter, equal for equal layers, so they neither make
    layers differ nor use memory under `nnx.eval_shape`.
    """
    return nnx.Param(INITIALIZERS[init](rngs.params(), shape, dtype), axes=axes, init=init)


def precision(dtype: DTypeLike) -> jax.lax.Precision:
    """Full precision for float32 operands (a GPU would round them to TF32), else the default."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else jax.lax.Precision.DEFAULT


def matmul(
    x: Float[Array, "*N E"], w: Float[Array, "O E"], out_dtype: DTypeLike | None = None
) -> Float[Array, "*N O"]:
    """x @ w.T in the weight's type; the result in `out_dtype`, by default the weight's type."""
    return jax.lax.dot_general(
        x.astype(w.dtype),
        w,
        (((x.ndim - 1,), (1,)), ((), ())),
        precision=precision(w.dtype),
        preferred_element_type=out_dtype or w.dtype,
    )


class Linear(nnx.Module):
    """y = x W^T + b, with W [out, in] as checkpoints store it. `axes` names (out, in)."""

    def __init__(
        self,
        in_size: int,
        out_size: int,
        axes: Axes,
        *,
        bias: bool = False,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.in_size = in_size
        self.weight = weight((out_size, in_size), axes, dtype=dtype, rngs=rngs)
        self.bias = (
            weight((out_size,), axes[:1], dtype=dtype, rngs=rngs, init="zeros") if bias else None
        )
        self.lora: LowRank | None = None

    def __call__(self, x: Float[Array, "*N I"]) -> Float[Array, "*N O"]:
        """Without the updates in `lora`, which `block.linear` adds."""
        y = self.whole(matmul(x, self.weight[...]))
        return y if self.bias is None else y + jnp.broadcast_to(self.bias[...], y.shape)

    @property
    def has_some_inputs(self) -> bool:
        """Whether other devices have the others, so that products are to be added up."""
        return self.weight.shape[-1] < self.in_size

    def whole(self, products: Float[Array, "..."]) -> Float[Array, "..."]:
        """Products with the weight, added up among devices each of which has some of its inputs."""
        return shards.summed(products) if self.has_some_inputs else products


class Embedding(nnx.Module):
    """A table of vectors, [count, size]; also the vocabulary head where the two are tied."""

    def __init__(
        self,
        count: int,
        size: int,
        axes: Axes = ("vocab", "embed"),
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.count = count
        self.weight = weight((count, size), axes, dtype=dtype, rngs=rngs)

    @property
    def is_part(self) -> bool:
        """Whether the table is shared out among devices."""
        return self.weight.shape[0] < self.count

    def __call__(self, index: Int[Array, "*N"]) -> Float[Array, "*N E"]:
        """Vectors at `index`; an index out of range takes the nearest that exists."""
        rows = self.own(index)
        return shards.summed(rows) if self.is_part else rows

    def own(
        self, index: Int[Array, "*N"], added: Float[Array, "*N E"] | None = None
    ) -> Float[Array, "*N E"]:
        """Those that this device has, `added` to them, and zeros for the others."""
        rows = shards.own_rows(self.weight[...], index, self.count)
        return rows if added is None else rows + added

    def logits(
        self, x: Float[Array, "*N E"], added: Float[Array, "*N part"] | None = None
    ) -> Float[Array, "*N part"]:
        """float32 products of x with every vector that this device has, `added` to them."""
        y = matmul(x, self.weight[...], jnp.float32)
        return y if added is None else y + added


class RMSNorm(nnx.Module):
    """Root mean square norm of the last dimension, computed in float32 (arXiv:1910.07467).

    Over all devices, where each has a part of it.
    """

    def __init__(
        self, size: int, eps: float, axes: Axes = ("embed",), *, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        self.size = size
        self.weight = weight((size,), axes, dtype=dtype, rngs=rngs, init="ones")
        self.eps = eps

    def __call__(self, x: Float[Array, "*N E"]) -> Float[Array, "*N E"]:
        y = x.astype(jnp.float32)
        mean = jnp.mean(jnp.square(y), -1, keepdims=True)
        if x.shape[-1] < self.size:
            mean = shards.summed(mean) * (x.shape[-1] / self.size)
        y = y * jax.lax.rsqrt(mean + self.eps)
        return y.astype(x.dtype) * jnp.broadcast_to(self.weight[...], x.shape)


class LayerNorm(nnx.Module):
    """Layer norm of the last dimension, computed in float32 (arXiv:1607.06450)."""

    def __init__(
        self, size: int, eps: float = 1e-5, *, affine: bool, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        self.eps = eps
        self.weight, self.bias = (
            weight((size,), ("embed",), dtype=dtype, rngs=rngs, init=init) if affine else None
            for init in ("ones", "zeros")
        )

    def __call__(self, x: Float[Array, "*N E"]) -> Float[Array, "*N E"]:
        y = x.astype(jnp.float32)
        y = y - jnp.mean(y, -1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + self.eps)
        if self.weight is not None and self.bias is not None:
            scale, shift = (jnp.broadcast_to(p[...], y.shape) for p in (self.weight, self.bias))
            y = y * scale.astype(jnp.float32) + shift.astype(jnp.float32)
        return y.astype(x.dtype)
