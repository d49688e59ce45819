"""What all image processors do: sizes, filters and normalization, as their files have them."""

import dataclasses
from collections.abc import Mapping
from typing import Self

import numpy as np
from PIL import Image

from ..errors import UnsupportedModelError
from .fields import HfConfig, count, malformed

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class Normalization:
    """(value * scale - mean) / std for each of the channels red, green and blue."""

    scale: float = 1 / 255
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    @classmethod
    def from_hf(cls, hf: HfConfig) -> Self:
        """Raises ModelConfigError for a field that is malformed."""
        scale = _number(hf, "rescale_factor", 1 / 255) if hf.get("do_rescale", True) else 1.0
        if not hf.get("do_normalize", True):
            return cls(scale, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        std = _channels(hf, "image_std", CLIP_STD)
        if not all(std):
            raise malformed("image_std", list(std), "three numbers that are not 0")
        return cls(scale, _channels(hf, "image_mean", CLIP_MEAN), std)

    @property
    def factors(self) -> np.ndarray:
        """Float32 [3]: what a value is multiplied by, before `terms` are added."""
        return (self.scale / np.array(self.std)).astype(np.float32)

    @property
    def terms(self) -> np.ndarray:
        """Float32 [3]."""
        return (-np.array(self.mean) / np.array(self.std)).astype(np.float32)

    def __call__(self, image: Image.Image) -> np.ndarray:
        """The float32 [3, H, W] of an RGB picture."""
        pixels = (np.asarray(image).transpose(2, 0, 1) * self.scale).astype(np.float32)
        pixels -= np.array(self.mean, np.float32)[:, None, None]
        pixels /= np.array(self.std, np.float32)[:, None, None]
        return pixels


def resampling(hf: HfConfig, default: Image.Resampling) -> Image.Resampling:
    """Pillow's filter that the field `resample` names by number; raises ModelConfigError."""
    value = default if hf.get("resample") is None else hf["resample"]
    try:
        return Image.Resampling(value)
    except ValueError:
        raise malformed("resample", value, "the number of a filter of Pillow, 0 to 5") from None


def height_width(hf: HfConfig, name: str) -> tuple[int, int]:
    """The field `name` as (height, width): an integer for both, or a dict of the two."""
    value = hf.get(name)
    if isinstance(value, Mapping):
        return count(value, "height", 0), count(value, "width", 0)
    edge = count(hf, name, 0)
    return edge, edge


def require(hf: HfConfig, name: str, expected: bool, default: bool) -> None:
    """Raises UnsupportedModelError where the switch `name` is not as it must be."""
    if (given := hf.get(name, default)) is not None and bool(given) != expected:
        raise UnsupportedModelError(
            f"The model's preprocessor_config.json has {name!r} {given!r}; only {expected} is "
            "implemented. Use a model whose pictures are processed so."
        )


def _number(hf: HfConfig, name: str, default: float) -> float:
    value = default if hf.get(name) is None else hf[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise malformed(name, value, "a number")
    return float(value)


def _channels(hf: HfConfig, name: str, default: tuple[float, ...]) -> tuple[float, ...]:
    values = default if hf.get(name) is None else hf[name]
    if not isinstance(values, list | tuple) or len(values) != 3:
        raise malformed(name, values, "three numbers")
    return tuple(_number({name: value}, name, 0.0) for value in values)
