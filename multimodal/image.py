"""Pictures in the form of an older interface: an object instead of a dict, one for each prompt."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, eq=False)
class ImagePixelData:
    """A picture, or its pixels as the model's processor would make them."""

    image: Any
    """A PIL image, or an array [1, 3, H, W] or [3, H, W] that no processor sees."""


@dataclasses.dataclass(frozen=True, eq=False)
class ImageFeatureData:
    """A picture as the output of the vision tower, for `image_input_type="image_features"`."""

    image_features: Any
    """An array [1, N, V] or [N, V]: N features of the tower's width V."""
