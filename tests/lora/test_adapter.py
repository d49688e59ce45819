"""Adapters merged into parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from quire.lora.adapter import Adapter, Part, merged


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


ADAPTER = Adapter("x", 2, {"w": (Part((slice(None), 1), ones(2, 5), 3 * ones(4, 2)),)})


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_only_the_part_changes_and_only_in_a_copy(dtype: Any) -> None:
    params = {"w": np.ones((4, 3, 5), dtype), "v": np.ones(2, dtype)}
    result = merged(params, ADAPTER)
    assert result["v"] is params["v"]
    assert result["w"].dtype == dtype
    assert np.all(result["w"][:, 1] == 7)
    assert np.all(result["w"][:, [0, 2]] == 1)
    assert np.all(params["w"] == 1)


def test_device_arrays_stay_device_arrays() -> None:
    result = merged({"w": jnp.ones((4, 3, 5), jnp.bfloat16)}, ADAPTER)
    assert isinstance(result["w"], jax.Array)
    assert result["w"].dtype == jnp.bfloat16


@pytest.mark.parametrize(("path", "same"), [("embed.weight", 1), ("head.weight", 3)])
def test_tied_weights_part(path: str, same: int) -> None:
    """Where one of the two is changed, the other is what both were."""
    adapter = Adapter("x", 1, {path: (Part((), ones(1, 3), ones(4, 1)),)})
    result = merged({"embed.weight": same * ones(4, 3)}, adapter)
    other = {"embed.weight": "head.weight", "head.weight": "embed.weight"}[path]
    assert np.all(result[path] == same + 1)
    assert np.all(result[other] == same)
