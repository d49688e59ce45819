"""What surrounds attention in a transformer block, in plain `jnp`. These functions define kernels.

Letters as in `reference`, and E elements of a hidden state, F columns of a gated product, G query
heads a KV head, X elements of a head that are rotated, S slots of adapters, R their rank, N parts
of a product that have an A of their own.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .reference import kv_write

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": jax.nn.gelu,
}
"""Those that a gate may have, by name."""


class Update(NamedTuple):
    """What adapters of low rank still have to add to a product, each token's by its own slot."""

    h: Float[Array, "T N S R"]
    """The input times A, for every slot. Only a token's own counts."""
    b: Float[Array, "S R ..."]
    slots: Int[Array, " T"]
    """S is none."""


def own(h: Float[Array, "T N S R"], slots: Int[Array, " T"]) -> Float[Array, "T N S R"]:
    """h with zeros for the slots that are not the token's."""
    mine = jnp.arange(h.shape[2]) == slots[:, None]
    return jnp.where(mine[:, None, :, None], h, jnp.zeros_like(h))


def expand(update: Update, part: int = 0) -> Float[Array, "T ..."]:
    """h of one part times B, in float32."""
    h, b = own(update.h, update.slots)[:, part], update.b
    product = jnp.einsum(
        "tk,ko->to",
        h.reshape(h.shape[0], -1),
        b.reshape(h.shape[1] * h.shape[2], -1),
        preferred_element_type=jnp.float32,
    )
    return product.reshape(-1, *b.shape[2:])


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


def updated(qkv: Float[Array, "T Hkv G+2 D"], update: Update | None) -> Float[Array, "T Hkv G+2 D"]:
    """qkv with its update, which is as for `rope_write`; in float32 if there is one."""
    if update is None:
        return qkv
    groups = qkv.shape[2] - 2
    q, k, v = (expand(update, part) for part in range(3))
    added = [q[:, :, :groups], k[:, :, groups:-1], v[:, :, -1:]]
    return qkv.astype(jnp.float32) + jnp.concatenate(added, 2)


def rope_write(
    k_pool: Float[Array, "P S Hkv D"],
    v_pool: Float[Array, "P S Hkv D"],
    qkv: Float[Array, "T Hkv G+2 D"],
    cos: Float[Array, "T X/2"],
    sin: Float[Array, "T X/2"],
    index: Int[Array, " T"],
    update: Update | None = None,
) -> tuple[Float[Array, "T Hkv*G D"], Float[Array, "P S Hkv D"], Float[Array, "P S Hkv D"]]:
    """The rotated queries, and the pools with the rotated keys and the values (see `kv_write`).

    Of a KV head's G + 2 vectors the last two are its key and its value.

    Args:
        update: added to qkv before, in float32: h is of three parts, those of queries, keys and
            values, b of [S, R, Hkv, G + 2, D].
    """
    tokens, _, _, size = qkv.shape
    dtype = qkv.dtype
    qkv = updated(qkv, update)
    q = rotate(qkv[:, :, :-2].reshape(tokens, -1, size), cos, sin).astype(dtype)
    k = rotate(qkv[:, :, -2], cos, sin).astype(dtype)
    return q, *kv_write(k_pool, v_pool, k, qkv[:, :, -1].astype(dtype), index)


def add_rms_norm(
    x: Float[Array, "T E"],
    y: Float[Array, "T E"],
    weight: Float[Array, " E"],
    eps: float,
    update: Update | None = None,
) -> tuple[Float[Array, "T E"], Float[Array, "T E"]]:
    """x + y, and its root mean square norm (arXiv:1910.07467), which is computed in float32.

    Args:
        update: added to y in float32: h is of one part, b of [S, R, E].
    """
    total = x + y
    if update is not None:
        exact = x.astype(jnp.float32) + y.astype(jnp.float32) + expand(update)
        total = exact.astype(x.dtype)
    exact = total.astype(jnp.float32)
    exact = exact * jax.lax.rsqrt(jnp.mean(jnp.square(exact), -1, keepdims=True) + eps)
    return total, exact.astype(x.dtype) * jnp.broadcast_to(weight, x.shape)


def gated_matmul(
    x: Float[Array, "T E"],
    w: Float[Array, "2 F E"],
    h: Float[Array, "T K"] | None = None,
    b: Float[Array, "2 F K"] | None = None,
    *,
    activation: str,
) -> Float[Array, "T F"]:
    """The activation of x times the transpose of w[0], times x times that of w[1].

    All of it in float32, then in the type of x.

    Args:
        h, b: h times the transposes of b[0] and b[1] is added to the two.
    """
    gate, up = jnp.einsum("te,nfe->ntf", x, w, preferred_element_type=jnp.float32)
    if h is not None and b is not None:
        added = jnp.einsum("tk,nfk->ntf", h, b, preferred_element_type=jnp.float32)
        gate, up = gate + added[0], up + added[1]
    return (ACTIVATIONS[activation](gate) * up).astype(x.dtype)


def matmul(x: Float[Array, "T E"], w: Float[Array, "O E"]) -> Float[Array, "T O"]:
    """x times the transpose of w, in float32, then in the type of x."""
    return jnp.einsum("te,oe->to", x, w, preferred_element_type=jnp.float32).astype(x.dtype)


def joint_matmul(
    x: Float[Array, "T E"], w: Float[Array, "O E"], a: Float[Array, "M E"]
) -> tuple[Float[Array, "T O"], Float[Array, "T M"]]:
    """x times the transposes of w and of a."""
    return matmul(x, w), matmul(x, a)


def norm_matmul(
    x: Float[Array, "T E"],
    y: Float[Array, "T E"],
    weight: Float[Array, " E"],
    w: Float[Array, "O E"],
    *,
    eps: float,
) -> tuple[Float[Array, "T E"], Float[Array, "T O"]]:
    """x + y, and its norm times the transpose of w."""
    total, normed = add_rms_norm(x, y, weight, eps)
    return total, matmul(normed, w)


def norm_gated_matmul(
    x: Float[Array, "T E"],
    y: Float[Array, "T E"],
    weight: Float[Array, " E"],
    w: Float[Array, "2 F E"],
    *,
    eps: float,
    activation: str,
) -> tuple[Float[Array, "T E"], Float[Array, "T F"]]:
    """x + y, and the gated product of its norm."""
    total, normed = add_rms_norm(x, y, weight, eps)
    return total, gated_matmul(normed, w, activation=activation)
