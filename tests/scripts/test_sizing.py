"""What GPUs are said to hold, and that the page says what the scripts do."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
sizing, sizing_fleet = (importlib.import_module(name) for name in ("sizing", "sizing_fleet"))
PAGE = (ROOT / "docs" / "sizing.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("script", ["sizing.py", "sizing_fleet.py"])
def test_the_page_has_what_the_script_prints(script: str) -> None:
    command = [sys.executable, str(ROOT / "scripts" / script)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("XLA_", "JAX_"))}
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    tables = printed.stdout.strip().split("\n\n")
    assert tables
    for table in tables:
        assert f"\n\n{table}\n\n" in PAGE


def test_8b_fits_on_one_gpu_and_70b_does_not() -> None:
    assert sizing.share("8B", 1).tokens > 800_000
    assert sizing.share("70B", 1).tokens is None
    assert sizing.row("70B", 1)[4:] == ("does not fit", "320", "", "")


def test_405b_fits_on_eight_gpus_and_not_on_four() -> None:
    assert sizing.share("405B", 4).tokens is None
    assert sizing.share("405B", 8).tokens > 131_072


def test_weights_are_shared_out_and_tokens_grow() -> None:
    shares = [sizing.share("8B", gpus) for gpus in sizing.GPUS]
    for gpus, one in zip(sizing.GPUS, shares, strict=True):
        # norms are whole on each; on 16 GPUs each K and V head is on two
        assert one.weights * gpus == pytest.approx(
            shares[0].weights, rel=0.08 if gpus > 8 else 0.001
        )
    tokens = [one.tokens for one in shares]
    assert tokens == sorted(set(tokens))


def test_types_and_pages_are_those_of_a_hopper_gpu() -> None:
    one = sizing.share("8B", 1)
    assert one.token == 2 * 32 * 8 * 128 * 2  # K and V, layers, heads, their size, bytes


def test_what_fits_stays_within_the_gpu() -> None:
    one = sizing.share("8B", 1)
    assert one.tokens is not None
    taken = one.weights + one.temporaries + one.tokens * one.token
    assert 0.97 < taken / (0.92 * sizing.H200_BYTES) < 1


def test_measured_rates_foretell_a_workload_that_they_were_not_taken_from() -> None:
    small = sizing_fleet.replica("8B", 1)
    rates = sizing_fleet.reached(small)
    assert rates.bandwidth < sizing_fleet.BANDWIDTH
    took = small.prompt(512, 0, rates) * 256 + 255 * small.step(256, 640, rates)
    assert took == pytest.approx(sizing_fleet.workload("b256_batch")["median_s"], rel=0.05)
