"""Rotary position embeddings (arXiv:2104.09864) and the ways to stretch them.

The factors of some types depend on the length of the sequence. Here they are fixed when the
config is made, by `max_model_len`, so that a cached key equals one computed anew.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Float, Int

from ..errors import ModelConfigError, UnsupportedModelError, nearest
from .hf_config import HfConfig, number, required_count

_Frequencies = npt.NDArray[np.floating]


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """The rotation of the first 2 * len(inv_freq) elements of every head."""

    inv_freq: tuple[float, ...]
    """Radians per position, one for each pair of elements."""
    attention_factor: float = 1.0
    """Cosine and sine are multiplied with it."""

    @classmethod
    def from_hf(cls, hf: HfConfig, head_dim: int, max_model_len: int) -> "RopeConfig":
        """From a `config.json` with `rope_parameters`, or `rope_theta` and `rope_scaling`.

        Args:
            max_model_len: length, in tokens, for which types that depend on length are fixed.

        Raises:
            UnsupportedModelError: the rope type is unknown.
            ModelConfigError: a field the type needs is missing or malformed.
        """
        settings = _Settings(hf, rope_parameters(hf), head_dim, max_model_len)
        inv_freq, attention_factor = _TYPES[_rope_type(settings.parameters)](settings)
        return cls(tuple(float(f) for f in inv_freq), float(attention_factor))

    def cos_sin(
        self, positions: Int[Array, " T"]
    ) -> tuple[Float[Array, "T D/2"], Float[Array, "T D/2"]]:
        """float32 cosine and sine of every angle, multiplied with the attention factor."""
        frequencies = jnp.asarray(self.inv_freq, jnp.float32)
        angles = positions.astype(jnp.float32)[:, None] * frequencies[None, :]
        return jnp.cos(angles) * self.attention_factor, jnp.sin(angles) * self.attention_factor


def rope_parameters(hf: HfConfig) -> dict[str, Any]:
    """The rope settings of a `config.json`, old names or new, with theta and type filled in.

    Raises:
        UnsupportedModelError: there are settings for each type of layer.
    """
    found = dict(hf.get("rope_scaling") or hf.get("rope_parameters") or {})
    nested = [name for name, value in found.items() if isinstance(value, Mapping)]
    if nested:
        raise UnsupportedModelError(
            f"The model's config.json has rope settings for each type of layer ({nested}), which "
            "are not supported; one set for all layers is."
        )
    found["rope_type"] = found.get("rope_type") or found.pop("type", None) or "default"
    for name, default in (("rope_theta", 10000.0), ("partial_rotary_factor", 1.0)):
        if found.get(name) is None:
            found[name] = number(hf, name, default)
    if hf.get("original_max_position_embeddings") is not None:
        found["original_max_position_embeddings"] = hf["original_max_position_embeddings"]
    return found


def position_limit(hf: HfConfig) -> int:
    """Most tokens the rotary positions of a model are made for.

    Types whose `max_position_embeddings` is the length before stretching give more than it.
    """
    parameters = rope_parameters(hf)
    positions = required_count(hf, "max_position_embeddings")
    stretched = _STRETCHED.get(_rope_type(parameters))
    return positions if stretched is None else stretched(parameters, positions)


def _rope_type(parameters: Mapping[str, Any]) -> str:
    name = str(parameters["rope_type"])
    if name not in _TYPES:
        raise UnsupportedModelError(
            f"The rope type {name!r} is not supported; supported are {', '.join(_TYPES)}."
            f"{nearest(name, _TYPES)}"
        )
    return name


@dataclasses.dataclass(frozen=True)
class _Settings:
    hf: HfConfig
    parameters: Mapping[str, Any]
    head_dim: int
    max_model_len: int

    def __getitem__(self, name: str) -> float:
        if self.parameters.get(name) is None:
            raise ModelConfigError(
                f"The rope settings in the model's config.json have no field {name!r}, which type "
                f"{self.parameters['rope_type']!r} needs. Add it to rope_parameters."
            )
        return number(self.parameters, name, 0.0)

    def get(self, name: str, default: float) -> float:
        return number(self.parameters, name, default)

    @property
    def rotary_dim(self) -> int:
        return int(self.head_dim * self["partial_rotary_factor"])

    @property
    def positions(self) -> int:
        return required_count(self.hf, "max_position_embeddings")

    @property
    def original_positions(self) -> float:
        return self.get("original_max_position_embeddings", self.positions)

    def factors(self, name: str) -> _Frequencies:
        values, expected = self.parameters.get(name), -(-self.rotary_dim // 2)
        if not isinstance(values, list | tuple) or len(values) != expected:
            raise ModelConfigError(
                f"The rope setting {name!r} in the model's config.json must be a list of "
                f"{expected} numbers, not {values!r}. Correct the file."
            )
        return np.asarray(values, np.float32)

    def wavelengths(self, theta: float | None = None) -> _Frequencies:
        """Positions per radian, the inverse of the unscaled frequencies."""
        exponents = np.arange(0, self.rotary_dim, 2, dtype=np.float32) / np.float32(self.rotary_dim)
        base = np.float32(theta or self["rope_theta"])
        # rounded from float64, since float32 powers differ between libraries
        return (np.float64(base) ** exponents.astype(np.float64)).astype(np.float32)


def _default(settings: _Settings) -> tuple[_Frequencies, float]:
    return 1 / settings.wavelengths(), 1.0


def _linear(settings: _Settings) -> tuple[_Frequencies, float]:
    return 1 / settings.wavelengths() / np.float32(settings["factor"]), 1.0


def _dynamic(settings: _Settings) -> tuple[_Frequencies, float]:
    """NTK-aware scaling: the base grows with the length."""
    factor, dim = settings["factor"], settings.rotary_dim
    stretch = max(settings.max_model_len, settings.positions) / settings.positions
    theta = settings["rope_theta"] * (factor * stretch - (factor - 1)) ** (dim / (dim - 2))
    return 1 / settings.wavelengths(theta), 1.0


def _llama3(settings: _Settings) -> tuple[_Frequencies, float]:
    """Llama 3.1: long waves are slowed by `factor`, short ones stay, between them a blend."""
    factor, original = settings["factor"], settings.original_positions
    low, high = settings["low_freq_factor"], settings["high_freq_factor"]
    inv_freq = 1 / settings.wavelengths()
    wavelength = np.float32(2 * math.pi) / inv_freq
    blend = (np.float32(original) / wavelength - np.float32(low)) / np.float32(high - low)
    blend = np.clip(blend, np.float32(0), np.float32(1))
    return (1 - blend) * inv_freq / np.float32(factor) + blend * inv_freq, 1.0


def _yarn(settings: _Settings) -> tuple[_Frequencies, float]:
    """YaRN (arXiv:2309.00071)."""
    original = settings.original_positions
    factor = settings.get("factor", settings.positions / original)
    low, high = _yarn_range(settings, original)
    ramp = (np.arange(settings.rotary_dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(
        high - low
    )
    kept = 1 - np.clip(ramp, np.float32(0), np.float32(1))
    wavelengths = settings.wavelengths()
    slowed = 1 / (np.float32(factor) * wavelengths)
    inv_freq = slowed * (1 - kept) + 1 / wavelengths * kept
    return inv_freq, settings.get("attention_factor", _yarn_attention_factor(settings, factor))


def _yarn_range(settings: _Settings, original: float) -> tuple[float, float]:
    """Between which pairs of elements the rotation goes from kept to slowed."""
    dim, theta = settings.rotary_dim, settings["rope_theta"]

    def pair_with(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = pair_with(settings.get("beta_fast", 0) or 32)
    high = pair_with(settings.get("beta_slow", 0) or 1)
    if settings.parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    return low, high + 0.001 if low == high else high


def _yarn_attention_factor(settings: _Settings, factor: float) -> float:
    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1

    numerator, denominator = settings.get("mscale", 0), settings.get("mscale_all_dim", 0)
    return scale(numerator) / scale(denominator) if numerator and denominator else scale(1)


def _longrope(settings: _Settings) -> tuple[_Frequencies, float]:
    """LongRoPE (arXiv:2402.13753): each frequency has a factor for short and one for long."""
    original = settings.original_positions
    long = settings.max_model_len > original
    wavelengths = settings.factors("long_factor" if long else "short_factor")
    wavelengths = wavelengths * settings.wavelengths()
    factor = settings.get("factor", settings.positions / original)
    growth = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return 1 / wavelengths, settings.get("attention_factor", growth)


_TYPES: dict[str, Callable[[_Settings], tuple[_Frequencies, float]]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}


def _times_factor(parameters: Mapping[str, Any], positions: int) -> int:
    return int(positions * number(parameters, "factor", 1.0))


def _original_times_factor(parameters: Mapping[str, Any], positions: int) -> int:
    original = number(parameters, "original_max_position_embeddings", positions)
    return max(positions, int(original * number(parameters, "factor", 1.0)))


_STRETCHED: dict[str, Callable[[Mapping[str, Any], int], int]] = {
    "linear": _times_factor,
    "dynamic": _times_factor,
    "yarn": _original_times_factor,
}
