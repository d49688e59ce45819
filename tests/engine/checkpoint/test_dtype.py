import logging
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from quire.engine.checkpoint import resolve_dtype
from quire.errors import ModelConfigError, OptionError

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@pytest.mark.parametrize(
    ("requested", "expected"),
    [
        ("half", np.float16),
        ("float16", np.float16),
        ("bfloat16", ml_dtypes.bfloat16),
        ("float", np.float32),
        ("float32", np.float32),
    ],
)
@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_a_named_type_is_taken(requested: str, expected: type, platform: str) -> None:
    assert resolve_dtype(requested, {"dtype": "int8"}, platform) == np.dtype(expected)


@pytest.mark.parametrize(
    ("config", "cpu", "gpu"),
    [
        ({"dtype": "float16"}, np.float16, np.float16),
        ({"torch_dtype": "bfloat16"}, BFLOAT16, BFLOAT16),
        ({"dtype": "bfloat16", "torch_dtype": "float16"}, BFLOAT16, BFLOAT16),
        ({"dtype": "float32"}, np.float32, BFLOAT16),
        ({"torch_dtype": "torch.float32"}, np.float32, BFLOAT16),
        ({"dtype": None}, np.float32, BFLOAT16),
        ({}, np.float32, BFLOAT16),
        ({"text_config": {"dtype": "float16"}}, np.float16, np.float16),
    ],
)
def test_auto_is_the_checkpoints_type(config: dict[str, Any], cpu: Any, gpu: Any) -> None:
    assert resolve_dtype("auto", config, "cpu") == np.dtype(cpu)
    assert resolve_dtype("auto", config, "gpu") == np.dtype(gpu)


def test_making_float32_smaller_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        resolve_dtype("auto", {"dtype": "float32"}, "gpu")
    assert "become bfloat16" in caplog.text


@pytest.mark.parametrize("requested", ["bfloat", "int8", "", 16])
def test_an_unknown_type_lists_the_known(requested: Any) -> None:
    with pytest.raises(OptionError, match="one of auto, half, float16, bfloat16, float, float32"):
        resolve_dtype(requested, {}, "cpu")


def test_a_misspelt_type_gets_a_hint() -> None:
    with pytest.raises(OptionError, match="Did you mean 'bfloat16'"):
        resolve_dtype("bfloat_16", {}, "cpu")


def test_auto_needs_a_type_that_runs() -> None:
    with pytest.raises(ModelConfigError, match="'float8_e4m3fn'.*dtype='bfloat16'"):
        resolve_dtype("auto", {"dtype": "float8_e4m3fn"}, "gpu")
