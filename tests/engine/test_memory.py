"""How many pages a budget holds."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from quire.engine import memory
from quire.engine.buckets import Buckets
from quire.engine.device_state import RunnerConfig
from quire.engine.model import find_spec
from quire.engine.options import make_options
from quire.errors import MemoryBudgetError

PAGE_BYTES = 16 * 2 * 2 * 2 * 8 * 4
"""Of the tiny model: 16 tokens, K and V, 2 layers, 2 heads of 8, float32."""


@pytest.fixture
def config() -> RunnerConfig:
    return RunnerConfig(Buckets(8, 64), 0, 16, 5, compile_ahead=False)


def plan(folder: Path, config: RunnerConfig, **options: object) -> int:
    made = make_options(str(folder), **options)
    return memory.plan_pages(find_spec(made), config, made)


def test_pages_fill_the_bytes_given(model_folder: Path, config: RunnerConfig) -> None:
    made = make_options(str(model_folder))
    assert memory.page_bytes(find_spec(made), config) == PAGE_BYTES
    assert plan(model_folder, config, kv_cache_memory_bytes=40 * PAGE_BYTES) == 40


def test_no_more_pages_than_all_slots_can_use(model_folder: Path, config: RunnerConfig) -> None:
    assert plan(model_folder, config) == 8 * (256 // 16) + 1


def test_large_pools_are_rounded_down_coarsely() -> None:
    assert [memory._round_down(n) for n in (100, 127, 1000, 51234)] == [100, 127, 1000, 51200]


def test_a_pool_for_less_than_one_sequence_is_an_error(
    model_folder: Path, config: RunnerConfig
) -> None:
    with pytest.raises(
        MemoryBudgetError, match=r"max_model_len=256 needs 17 .*Lower max_model_len"
    ):
        plan(model_folder, config, kv_cache_memory_bytes=16 * PAGE_BYTES)


def test_a_model_larger_than_the_host_is_refused_before_loading(
    model_folder: Path, config: RunnerConfig
) -> None:
    made = make_options(str(model_folder))
    spec = find_spec(made)
    name = next(iter(spec.shapes))
    huge = jax.ShapeDtypeStruct((2**20, 2**22), jnp.float32)
    shapes = {**spec.shapes, name: huge}
    with pytest.raises(MemoryBudgetError, match=r"the weights take 16384.00 GiB as float32, but"):
        memory.plan_pages(dataclasses.replace(spec, shapes=shapes), config, made)
