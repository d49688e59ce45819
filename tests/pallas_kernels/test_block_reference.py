"""What surrounds attention in a block: the twins against numpy."""

import jax
import jax.numpy as jnp
import numpy as np

from quire.pallas_kernels import block_reference, reference


def noise(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_rope_write_is_a_rotation_and_a_write() -> None:
    pools, qkv = (noise(0, 3, 4, 2, 6), noise(1, 3, 4, 2, 6)), noise(2, 5, 2, 5, 6)
    angles, index = noise(3, 5, 2), jnp.asarray([4, 9, 0, 7, 2])
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    q, *written = block_reference.rope_write(*pools, qkv, cos, sin, index)
    k = block_reference.rotate(qkv[:, :, 3], cos, sin)
    for got, want in zip(written, reference.kv_write(*pools, k, qkv[:, :, 4], index), strict=True):
        np.testing.assert_array_equal(got, want)
    first, second, rest = np.split(np.asarray(qkv[:, 1, 2]), [2, 4], axis=1)
    turned = [first * cos - second * sin, second * cos + first * sin, rest]
    np.testing.assert_allclose(q[:, 5], np.concatenate(turned, 1), rtol=1e-6, atol=1e-6)


def test_the_norm_is_of_the_sum() -> None:
    x, y, weight = noise(0, 3, 8), noise(1, 3, 8), noise(2, 8)
    total, normed = block_reference.add_rms_norm(x, y, weight, 1e-3)
    np.testing.assert_array_equal(total, x + y)
    sums = np.asarray(total)
    want = sums / np.sqrt((sums**2).mean(1, keepdims=True) + 1e-3) * np.asarray(weight)
    np.testing.assert_allclose(normed, want, rtol=1e-5)


def test_the_gate_is_the_first_half() -> None:
    x, w = noise(0, 3, 16), noise(1, 2, 4, 16)
    gate, up = (np.asarray(x) @ np.asarray(w[i]).T for i in range(2))
    got = block_reference.gated_matmul(x, w, activation="silu")
    np.testing.assert_allclose(got, gate / (1 + np.exp(-gate)) * up, rtol=1e-4, atol=1e-5)
