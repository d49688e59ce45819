"""What surrounds attention in a transformer block, in plain `jnp`. These functions define kernels.

Letters as in `reference`, and E elements of a hidden state, F columns of a gated product, G query
heads a KV head, X elements of a head that are rotated.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .reference import kv_write

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": jax.nn.gelu,
}
"""Those that a gate may have, by name."""


def rotate(
    x: Float[Array, "T H D"], cos: Float[Array, "T X/2"], sin: Float[Array, "T X/2"]
) -> Float[Array, "T H D"]:
    """Rotates element i with element i + X / 2, in float32; elements from X on stay."""
    size = 2 * cos.shape[-1]
    pairs = x[..., :size].astype(jnp.float32).reshape(*x.shape[:2], 2, -1)
    sin = jnp.stack([-sin, sin], axis=1)  # by the half that is rotated
    cos, sin = (jnp.broadcast_to(f, pairs.shape) for f in (cos[:, None, None], sin[:, None]))
    # a flip, unlike a concatenation of the halves, fuses with what comes before and after
    rotated = pairs * cos + jnp.flip(pairs, 2) * sin
    rotated = rotated.reshape(*x.shape[:2], size).astype(x.dtype)
    return rotated if size == x.shape[-1] else jnp.concatenate([rotated, x[..., size:]], -1)


def rope_write(
    k_pool: Float[Array, "P S Hkv D"],
    v_pool: Float[Array, "P S Hkv D"],
    qkv: Float[Array, "T Hkv G+2 D"],
    cos: Float[Array, "T X/2"],
    sin: Float[Array, "T X/2"],
    index: Int[Array, " T"],
) -> tuple[Float[Array, "T Hkv*G D"], Float[Array, "P S Hkv D"], Float[Array, "P S Hkv D"]]:
    """The rotated queries, and the pools with the rotated keys and the values (see `kv_write`).

    Of a KV head's G + 2 vectors the last two are its key and its value.
    """
    tokens, _, _, size = qkv.shape
    q = rotate(qkv[:, :, :-2].reshape(tokens, -1, size), cos, sin)
    k = rotate(qkv[:, :, -2], cos, sin)
    return q, *kv_write(k_pool, v_pool, k, qkv[:, :, -1], index)


def add_rms_norm(
    x: Float[Array, "T E"], y: Float[Array, "T E"], weight: Float[Array, " E"], eps: float
) -> tuple[Float[Array, "T E"], Float[Array, "T E"]]:
    """x + y, and its root mean square norm (arXiv:1910.07467), which is computed in float32."""
    total = x + y
    exact = total.astype(jnp.float32)
    exact = exact * jax.lax.rsqrt(jnp.mean(jnp.square(exact), -1, keepdims=True) + eps)
    return total, exact.astype(x.dtype) * jnp.broadcast_to(weight, x.shape)


def gated_matmul(
    x: Float[Array, "T E"], w: Float[Array, "2 F E"], *, activation: str
) -> Float[Array, "T F"]:
    """The activation of x times the transpose of w[0], times x times that of w[1].

    All of it in float32, then in the type of x.
    """
    gate, up = jnp.einsum("te,nfe->ntf", x, w, preferred_element_type=jnp.float32)
    return (ACTIVATIONS[activation](gate) * up).astype(x.dtype)
