"""Rotation and writing into the pool: the kernel against its twin, to the last place."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quire.pallas_kernels import block_reference
from quire.pallas_kernels.block_reference import Update
from quire.pallas_kernels.rope_write import rope_write

pytestmark = pytest.mark.skipif(
    jax.__version_info__ < (0, 11, 2), reason="Mosaic kernels need jax 0.11.2"
)
DTYPES = ["bfloat16", "float16"]
ON = [pytest.param(True, id="interpreted"), pytest.param(False, id="gpu", marks=pytest.mark.gpu)]
SHAPES = {
    "grouped": (1, 8, 4, 128, 128),
    "partial": (3, 2, 4, 128, 64),
    "odd group": (7, 2, 7, 64, 64),
    "not a power of two": (2, 4, 1, 96, 96),
    "one KV head": (2, 1, 2, 256, 256),
}
REAL = {
    "one token": (1, 8, 4, 128, 128),
    "decode": (64, 8, 4, 128, 128),
    "odd tokens": (77, 8, 4, 128, 128),
    "prompt": (8192, 8, 4, 128, 128),
    "partial": (256, 8, 4, 128, 64),
    "quarter": (64, 16, 1, 256, 64),
    "two KV heads": (256, 2, 7, 64, 64),
    "one KV head": (64, 1, 8, 128, 128),
    "no groups": (64, 32, 1, 96, 96),
    "wide": (512, 4, 2, 256, 256),
    "many groups": (64, 1, 16, 256, 256),
}
# a shape, slots and rank
UPDATED = {
    "grouped": ((3, 2, 4, 64, 64), 2, 8),
    "partial": ((4, 2, 2, 64, 32), 3, 12),
    "a loop": ((2, 1, 1, 64, 64), 1, 40),
    "rank one": ((2, 2, 1, 96, 96), 2, 1),
}
REAL_UPDATED = {
    "one token": (REAL["one token"], 4, 16),
    "decode": (REAL["decode"], 4, 16),
    "small rank": (REAL["decode"], 16, 8),
    "large rank": (REAL["decode"], 4, 64),
    "prompt": ((512, 8, 4, 128, 128), 8, 32),
    "quarter": (REAL["quarter"], 4, 16),
    "two KV heads": (REAL["two KV heads"], 4, 16),
    "no groups": (REAL["no groups"], 4, 16),
    "many groups": (REAL["many groups"], 4, 16),
}


def noise(seed: int, *shape: int, dtype: str = "float32") -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def arguments(
    tokens: int, kv_heads: int, groups: int, width: int, rotated: int, dtype: str
) -> list[jax.Array]:
    pages = tokens // 16 + 3
    pools = [noise(seed, pages, 16, kv_heads, width, dtype=dtype) for seed in (0, 1)]
    qkv = noise(2, tokens, kv_heads, groups + 2, width, dtype=dtype)
    angles = 100 * noise(3, tokens, rotated // 2)
    index = np.random.default_rng(4).permutation(pages * 16)[:tokens]
    return [*pools, qkv, jnp.cos(angles), jnp.sin(angles), jnp.asarray(index, jnp.int32)]


def updated(shape: tuple[int, ...], slots: int, rank: int, dtype: str) -> Update:
    """Slots go round, with none among them; NaNs fill h where another slot's would be read."""
    tokens, kv_heads, groups, width, _ = shape
    index = jnp.arange(tokens) % (slots + 1)
    mine = jnp.arange(slots) == index[:, None]
    h = noise(5, tokens, 3, slots, rank, dtype=dtype)
    h = jnp.where(mine[:, None, :, None], h, jnp.nan)
    b = noise(6, slots, rank, kv_heads, groups + 2, width, dtype=dtype)
    return Update(h, b, index.astype(jnp.int32))


def check_updated(got: tuple[jax.Array, ...], want: tuple[jax.Array, ...], update: Update) -> None:
    """Equal, but for the order of sums in float32, whose terms may cancel one another."""
    rank = update.b.shape[1]
    for one, other in zip(got, want, strict=True):
        assert one.dtype == other.dtype
        step = float(jnp.finfo(one.dtype).eps)
        wide = (np.asarray(x, np.float32) for x in (one, other))
        np.testing.assert_allclose(*wide, rtol=step, atol=1e-6 * (rank + 10))


def check(got: tuple[jax.Array, ...], want: tuple[jax.Array, ...]) -> None:
    """Equal, but for float32 sums that round differently: to one place of the 16-bit type."""
    for one, other in zip(got, want, strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        step = float(jnp.finfo(one.dtype).eps)
        # terms of different signs may leave little of themselves, but not of their rounding
        wide = (np.asarray(x, np.float32) for x in (one, other))
        np.testing.assert_allclose(*wide, rtol=step, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_is_its_twin(shape: tuple[int, int, int, int, int], dtype: str) -> None:
    args = arguments(*shape, dtype)
    got = jax.jit(functools.partial(rope_write, interpret=True))(*args)
    check(got, jax.jit(block_reference.rope_write)(*args))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", REAL.values(), ids=REAL)
def test_is_its_twin_on_a_gpu(shape: tuple[int, int, int, int, int], dtype: str) -> None:
    args = arguments(*shape, dtype)
    want = jax.jit(block_reference.rope_write)(*args)
    check(jax.jit(rope_write, donate_argnums=(0, 1))(*args), want)


@pytest.mark.parametrize(("shape", "slots", "rank"), UPDATED.values(), ids=UPDATED)
def test_is_its_twin_with_an_update(
    shape: tuple[int, int, int, int, int], slots: int, rank: int
) -> None:
    args, update = arguments(*shape, "bfloat16"), updated(shape, slots, rank, "bfloat16")
    got = jax.jit(functools.partial(rope_write, interpret=True))(*args, update)
    check_updated(got, jax.jit(block_reference.rope_write)(*args, update), update)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "slots", "rank"), REAL_UPDATED.values(), ids=REAL_UPDATED)
def test_is_its_twin_with_an_update_on_a_gpu(
    shape: tuple[int, int, int, int, int], slots: int, rank: int, dtype: str
) -> None:
    args, update = arguments(*shape, dtype), updated(shape, slots, rank, dtype)
    want = jax.jit(block_reference.rope_write)(*args, update)
    got = jax.jit(rope_write, donate_argnums=(0, 1))(*args, update)
    check_updated(got, want, update)


@pytest.mark.parametrize("interpret", ON)
def test_tokens_without_an_adapter_read_none(interpret: bool) -> None:
    args = arguments(4, 2, 2, 64, 32, "bfloat16")
    nothing = Update(
        jnp.full((4, 3, 2, 8), jnp.nan, jnp.bfloat16),
        jnp.full((2, 8, 2, 4, 64), jnp.nan, jnp.bfloat16),
        jnp.full(4, 2, jnp.int32),
    )
    write = jax.jit(functools.partial(rope_write, interpret=interpret))
    for some, one in zip(write(*args, nothing), write(*args), strict=True):
        np.testing.assert_array_equal(np.asarray(some), np.asarray(one))


@pytest.mark.parametrize("interpret", ON)
def test_vectors_that_do_not_turn_and_slots_of_others_stay_bitwise(interpret: bool) -> None:
    k_pool, v_pool, qkv, cos, sin, index = arguments(4, 2, 2, 64, 32, "bfloat16")
    write = jax.jit(functools.partial(rope_write, interpret=interpret))
    got = write(k_pool, v_pool, qkv, jnp.ones_like(cos), jnp.zeros_like(sin), index)
    np.testing.assert_array_equal(got[0], qkv[:, :, :2].reshape(4, 4, 64))
    for n, (pool, before) in enumerate(zip(got[1:], (k_pool, v_pool), strict=True)):
        want = np.array(before).reshape(-1, 2, 64)
        want[np.asarray(index)] = np.asarray(qkv[:, :, 2 + n])
        np.testing.assert_array_equal(np.asarray(pool).reshape(-1, 2, 64), want)


@pytest.mark.gpu
def test_padding_may_share_the_null_page() -> None:
    _, _, qkv, cos, sin, _ = arguments(256, 8, 4, 128, 128, "bfloat16")
    pools = [jnp.zeros((4, 16, 8, 128), jnp.bfloat16) for _ in range(2)]
    index = jnp.where(jnp.arange(256) < 40, jnp.arange(256) + 20, 0)
    _, *want = jax.jit(block_reference.rope_write)(*pools, qkv, cos, sin, index)
    _, *got = jax.jit(rope_write, donate_argnums=(0, 1))(*pools, qkv, cos, sin, index)
    # what is in the null page is nobody's
    check(tuple(pool[1:] for pool in got), tuple(pool[1:] for pool in want))
