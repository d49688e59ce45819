"""The seam picks kernels where they can run, and says why where they cannot."""

import logging
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quire.models import attention
from quire.models.batch import TokenBatch

GOOD = ("gpu", "bfloat16", 128, 4)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A stand-in for the device, since only its compute capability is looked at."""
    device = SimpleNamespace(compute_capability="9.0")
    monkeypatch.setattr(jax, "devices", lambda: [device])
    monkeypatch.setattr(jax, "__version_info__", (0, 11, 2))
    return device


def test_kernels_run_where_everything_fits(gpu: SimpleNamespace) -> None:
    assert attention._why_not(*GOOD) is None


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (("cpu", *GOOD[1:]), "JAX runs on cpu"),
        (("gpu", "float32", 128, 4), "know bfloat16 and float16, not float32"),
        (("gpu", "bfloat16", 320, 4), "heads of at most 256, not 320"),
        (("gpu", "bfloat16", 64, 71), "up to 16 query heads a KV head, not 71"),
    ],
)
def test_a_reason_is_named(
    gpu: SimpleNamespace, case: tuple[str, str, int, int], reason: str
) -> None:
    assert reason in (attention._why_not(*case) or "")


@pytest.mark.parametrize("capability", ["8.0", "8.9", "10.0", "12.0"])
def test_gpus_that_are_not_hopper_take_the_reference(gpu: SimpleNamespace, capability: str) -> None:
    gpu.compute_capability = capability
    assert f"this GPU has {capability}" in (attention._why_not(*GOOD) or "")


def test_old_versions_of_jax_take_the_reference(
    gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "__version_info__", (0, 10, 2))
    assert "need jax 0.11.2" in (attention._why_not(*GOOD) or "")


def test_the_pool_suits_the_kernels_where_they_run(gpu: SimpleNamespace) -> None:
    sizes = (64, 80, 96, 112, 128, 160, 256)
    layouts = [attention.pool_layout("gpu", "bfloat16", size, 4) for size in sizes]
    assert [layout.head_dim for layout in layouts] == [64, 96, 96, 128, 128, 256, 256]
    assert {layout.page_size for layout in layouts} == {64}
    assert attention.pool_layout("cpu", "float32", 80, 4) == (80, 16)
    assert attention.pool_layout("gpu", "float32", 80, 4) == (80, 16)


def test_padded_heads_change_nothing() -> None:
    """A pool with wider heads, as the kernels need it, through the twins."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(5, h, 80)), jnp.float32) for h in (4, 2, 2))
    batch = TokenBatch(
        positions=jnp.arange(5),
        rows=jnp.zeros(5, jnp.int32),
        write_index=jnp.arange(5) + 8,
        page_table=jnp.asarray([[1]], jnp.int32),
        lengths=jnp.asarray([5], jnp.int32),
        query_starts=jnp.asarray([0, 5], jnp.int32),
        decode=False,
    )
    outs = []
    for width in (80, 96):
        cache = (jnp.zeros((3, 8, 2, width)), jnp.zeros((3, 8, 2, width)))
        out, _ = attention.attend(q, k, v, cache, batch, scale=0.1)
        outs.append(np.asarray(out))
    np.testing.assert_allclose(outs[0], outs[1], atol=1e-6)
    np.testing.assert_allclose(outs[0], attention.causal(q, k, v, scale=0.1), atol=1e-5)


def test_the_choice_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    attention._announce.cache_clear()
    with caplog.at_level(logging.INFO, "quire"):
        for _ in range(3):
            assert attention.pool_layout("cpu", "float32", 32, 2) == (32, 16)
    assert [record.message for record in caplog.records] == [
        "attention over float32 pages, heads of 32: the plain reference, since JAX runs on cpu"
    ]
