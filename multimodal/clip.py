"""Pictures for CLIP towers as LLaVA-1.5 uses them: one square from the middle of the picture."""

import dataclasses
from typing import Self

import numpy as np
from PIL import Image

from ..errors import ModelConfigError
from .errors import MediaError
from .fields import HfConfig, count
from .pixels import Normalization, height_width, require, resampling

MAX_ASPECT = 200
"""A thin picture grows by this when its short side is scaled up, so there must be a limit."""


@dataclasses.dataclass(frozen=True)
class ClipImages:
    """Resizes (the shortest edge, or to an exact size), cuts the middle out and normalizes."""

    resize: int | tuple[int, int]
    """Pixels of the shortest edge, or height and width whatever the aspect."""
    crop: tuple[int, int]
    """Height and width of what the tower sees."""
    patch: int
    """Pixels along an edge of a square patch of the tower."""
    full: bool = False
    """Whether the language model gets the class token's feature too, before those of patches."""
    resample: Image.Resampling = Image.Resampling.BICUBIC
    normalize: Normalization = Normalization()

    @classmethod
    def from_hf(cls, hf: HfConfig, *, patch_size: int, select_strategy: str = "default") -> Self:
        """From `preprocessor_config.json`, and two fields of the model's config.json.

        Args:
            patch_size: of `vision_config`.
            select_strategy: `vision_feature_select_strategy`, "default" or "full".

        Raises:
            ModelConfigError: a field is malformed, or the crop is larger than what it is cut from.
            UnsupportedModelError: a step of another processor is switched on.
        """
        if select_strategy not in ("default", "full"):
            raise ModelConfigError(
                f"vision_feature_select_strategy is {select_strategy!r}; allowed are 'default' "
                "and 'full'. Correct the model's config.json."
            )
        require(hf, "do_resize", True, True)
        require(hf, "do_pad", False, False)
        resize = _resize(hf)
        crop = _crop(hf, resize)
        return cls(
            resize=resize,
            crop=crop,
            patch=patch_size,
            full=select_strategy == "full",
            resample=resampling(hf, Image.Resampling.BICUBIC),
            normalize=Normalization.from_hf(hf),
        )

    def check_side(self, side: int) -> None:
        """Raises ModelConfigError unless what the tower sees is `side` pixels high and wide."""
        if self.crop != (side, side):
            raise ModelConfigError(
                f"The model's preprocessor_config.json makes pictures of {self.crop} pixels, but "
                f"its vision tower takes {(side, side)}: crop_size must be the image_size of the "
                "vision_config in config.json. Correct the files."
            )

    @property
    def max_tokens(self) -> int:
        """What every picture has."""
        height, width = self.crop
        return (height // self.patch) * (width // self.patch) + self.full

    def num_tokens(self, width: int, height: int) -> int:
        """Placeholder tokens of a picture of a size; raises MediaError for one that is too thin."""
        self._resized(width, height)
        return self.max_tokens

    def __call__(self, image: Image.Image) -> np.ndarray:
        """The float32 [3, H, W] of an RGB picture; raises MediaError for one that is too thin."""
        resized = image.resize(self._resized(*image.size), self.resample)
        height, width = self.crop
        left, top = (resized.width - width) // 2, (resized.height - height) // 2
        return self.normalize(resized.crop((left, top, left + width, top + height)))

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height to scale to."""
        if not isinstance(self.resize, int):
            return self.resize[1], self.resize[0]
        short, long = sorted((width, height))
        if long > MAX_ASPECT * short:
            raise MediaError(
                f"A picture is {width}x{height} pixels; its long side may be at most {MAX_ASPECT} "
                "times its short side. Cut or pad it."
            )
        scaled = int(self.resize * long / short)
        return (self.resize, scaled) if width <= height else (scaled, self.resize)


def _resize(hf: HfConfig) -> int | tuple[int, int]:
    size = hf.get("size")
    if isinstance(size, int):
        return count(hf, "size", 0)
    if isinstance(size, dict) and "shortest_edge" in size:
        return count(size, "shortest_edge", 0)
    return height_width(hf, "size")


def _crop(hf: HfConfig, resize: int | tuple[int, int]) -> tuple[int, int]:
    if not hf.get("do_center_crop", True) and isinstance(resize, tuple):
        return resize
    require(hf, "do_center_crop", True, True)
    crop = height_width(hf, "crop_size")
    edges = (resize, resize) if isinstance(resize, int) else resize
    if crop[0] > edges[0] or crop[1] > edges[1]:
        raise ModelConfigError(
            f"crop_size is {crop} and size {resize} in the model's preprocessor_config.json; the "
            "crop must fit in. Correct the file."
        )
    return crop
