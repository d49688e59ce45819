"""The seam picks kernels where they can run, and says why where they cannot."""

import logging
from types import SimpleNamespace

import jax
import pytest

from quire.models import attention

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
        (("gpu", "bfloat16", 80, 4), "heads of 64, 128 and 256, not 80"),
        (("gpu", "bfloat16", 64, 71), "up to 16 query heads a KV head, not 71"),
    ],
)
def test_a_reason_is_named(
    gpu: SimpleNamespace, case: tuple[str, str, int, int], reason: str
) -> None:
    assert reason in (attention._why_not(*case) or "")


def test_old_gpus_and_old_versions_take_the_reference(
    gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu.compute_capability = "7.5"
    assert "compute capability is 7.5" in (attention._why_not(*GOOD) or "")
    monkeypatch.setattr(jax, "__version_info__", (0, 10, 2))
    assert "need jax 0.11" in (attention._why_not(*GOOD) or "")


def test_the_choice_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    attention._paged.cache_clear()
    with caplog.at_level(logging.INFO, "quire"):
        for _ in range(3):
            assert attention._paged("cpu", "float32", 32, 2) is attention._TWINS
    assert [record.message for record in caplog.records] == [
        "attention over float32 pages, heads of 32: the plain reference, since JAX runs on cpu"
    ]
