"""Rope factors against numbers that transformers 5.23 gave for the same config."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from quire.errors import ModelConfigError, UnsupportedModelError
from quire.models import rope
from quire.models.rope import RopeConfig
from quire.pallas_kernels.block_reference import rotate

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
YARN_OPTIONS = {
    "rope_type": "yarn",
    "factor": 40.0,
    "original_max_position_embeddings": 4096,
    "beta_fast": 16,
    "beta_slow": 2,
    "mscale": 0.7,
    "mscale_all_dim": 1.0,
    "truncate": False,
}
LONGROPE = {
    "type": "longrope",
    "short_factor": [1 + i * 0.01 for i in range(48)],
    "long_factor": [1 + i * 0.8 for i in range(48)],
}
PHI = {"max_position_embeddings": 131072, "original_max_position_embeddings": 4096}
PHI_GROWTH = math.sqrt(1 + math.log(32) / math.log(4096))

CASES: dict[str, tuple[dict[str, Any], int, int, dict[int, float], float]] = {
    "default": (
        {"max_position_embeddings": 4096},
        128,
        4096,
        {0: 1.0, 1: 0.8659643530845642, 32: 0.009999999776482582, 63: 0.00011547819303814322},
        1.0,
    ),
    "theta": (
        {"max_position_embeddings": 8192, "rope_theta": 500000.0},
        128,
        8192,
        {1: 0.8146172165870667, 21: 0.013490419834852219, 63: 2.4551407022954663e-06},
        1.0,
    ),
    "linear": (
        {"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 4.0}},
        128,
        4096,
        {0: 0.25, 1: 0.21649108827114105, 63: 2.8869548259535804e-05},
        1.0,
    ),
    "dynamic": (
        {"max_position_embeddings": 4096, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
        128,
        6000,
        {1: 0.8569756150245667, 32: 0.007161281071603298, 63: 5.984295785310678e-05},
        1.0,
    ),
    "dynamic below the original length": (
        {"max_position_embeddings": 4096, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
        128,
        1000,
        {1: 0.8659643530845642, 63: 0.00011547819303814322},
        1.0,
    ),
    "llama3": (
        {"max_position_embeddings": 131072, "rope_theta": 500000.0, "rope_scaling": LLAMA3},
        128,
        131072,
        {21: 0.013490419834852219, 32: 0.0005248460220173001, 63: 3.068925877869333e-07},
        1.0,
    ),
    "yarn": (
        {"max_position_embeddings": 131072, "rope_theta": 1000000.0, "rope_scaling": YARN},
        128,
        131072,
        {21: 0.010746078565716743, 32: 0.0006029411451891065, 63: 3.102344408034696e-07},
        1.138629436111989,
    ),
    "yarn with options": (
        {"max_position_embeddings": 131072, "rope_scaling": YARN_OPTIONS},
        128,
        131072,
        {21: 0.04869675263762474, 32: 0.005790104623883963, 63: 2.886954689529375e-06},
        0.9191559952044436,
    ),
    "longrope, short": (
        PHI | {"rope_scaling": LONGROPE},
        96,
        4096,
        {1: 0.8172318339347839, 24: 0.008064515888690948, 47: 8.24168382678181e-05},
        PHI_GROWTH,
    ),
    "longrope, long": (
        PHI | {"rope_scaling": LONGROPE},
        96,
        4097,
        {1: 0.4585578441619873, 24: 0.0004950494621880352, 47: 3.1386725822812878e-06},
        PHI_GROWTH,
    ),
    "partial": (
        PHI | {"rope_scaling": LONGROPE, "partial_rotary_factor": 0.75},
        128,
        131072,
        {1: 0.4585578441619873, 24: 0.0004950494621880352, 47: 3.1386725822812878e-06},
        PHI_GROWTH,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_factors_are_those_of_transformers(name: str) -> None:
    hf, head_dim, length, expected, attention_factor = CASES[name]
    config = RopeConfig.from_hf(hf, head_dim, length)
    got = [config.inv_freq[i] for i in expected]
    np.testing.assert_allclose(got, list(expected.values()), rtol=2e-7)
    assert config.attention_factor == pytest.approx(attention_factor, rel=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_new_names_mean_the_same(name: str) -> None:
    hf, head_dim, length, _, _ = CASES[name]
    hf = dict(hf)
    parameters = dict(hf.pop("rope_scaling", {}))
    parameters["rope_type"] = parameters.pop("type", None) or parameters.get("rope_type", "default")
    for field in ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings"):
        if field in hf:
            parameters[field] = hf.pop(field)
    new = RopeConfig.from_hf(hf | {"rope_parameters": parameters}, head_dim, length)
    assert new == RopeConfig.from_hf(CASES[name][0], head_dim, length)
    assert hash(new) == hash(RopeConfig.from_hf(CASES[name][0], head_dim, length))


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("default", 4096),
        ("linear", 16384),
        ("dynamic", 8192),
        ("llama3", 131072),
        ("yarn", 131072),
        ("longrope, short", 131072),
    ],
)
def test_position_limit_counts_the_stretch(name: str, limit: int) -> None:
    assert rope.position_limit(CASES[name][0]) == limit


def test_cos_sin_are_float32_and_carry_the_attention_factor() -> None:
    cos, sin = RopeConfig((1.0, 0.5), 2.0).cos_sin(jnp.asarray([0, 3], jnp.int32))
    assert cos.dtype == sin.dtype == jnp.float32
    np.testing.assert_allclose(cos, [[2, 2], [2 * math.cos(3), 2 * math.cos(1.5)]], rtol=1e-6)
    np.testing.assert_allclose(sin, [[0, 0], [2 * math.sin(3), 2 * math.sin(1.5)]], rtol=1e-6)


def test_apply_turns_pairs_and_leaves_the_rest() -> None:
    x = jnp.asarray([[[1.0, 2.0, 0.0, 0.0, 7.0, 8.0]]])
    cos, sin = jnp.asarray([[0.0, 1.0]]), jnp.asarray([[1.0, 0.0]])
    np.testing.assert_array_equal(rotate(x, cos, sin), [[[0, 2, 1, 0, 7, 8]]])


def test_apply_keeps_the_type() -> None:
    x = jnp.ones((2, 1, 4), jnp.bfloat16)
    assert rotate(x, *RopeConfig((1.0, 0.5)).cos_sin(jnp.arange(2))).dtype == jnp.bfloat16


def test_unknown_type_lists_what_is_supported() -> None:
    hf = {"max_position_embeddings": 64, "rope_scaling": {"type": "lama3"}}
    with pytest.raises(UnsupportedModelError, match=r"'lama3'.*yarn.*Did you mean 'llama3'"):
        RopeConfig.from_hf(hf, 8, 64)
    with pytest.raises(UnsupportedModelError, match="'lama3'"):
        rope.position_limit(hf)


def test_missing_field_is_named() -> None:
    hf = {"max_position_embeddings": 64, "rope_scaling": {"type": "linear"}}
    with pytest.raises(ModelConfigError, match=r"no field 'factor'.*'linear'"):
        RopeConfig.from_hf(hf, 8, 64)


def test_longrope_factors_of_the_wrong_length_are_refused() -> None:
    hf = PHI | {"rope_scaling": LONGROPE | {"short_factor": [1.0]}}
    with pytest.raises(ModelConfigError, match=r"'short_factor'.*48 numbers"):
        RopeConfig.from_hf(hf, 96, 4096)


def test_settings_for_each_layer_type_are_refused() -> None:
    hf = {"max_position_embeddings": 64, "rope_parameters": {"full_attention": {"factor": 2.0}}}
    with pytest.raises(UnsupportedModelError, match="full_attention"):
        RopeConfig.from_hf(hf, 8, 64)
