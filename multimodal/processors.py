"""Which architecture prepares pictures how, and what stands for a picture in its prompts."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from PIL import Image

from ..errors import ModelConfigError
from .clip import ClipImages
from .errors import MediaError
from .fields import HfConfig
from .phi3_v import Phi3VImages
from .qwen2_vl import Qwen2VLImages


class ImageProcessor(Protocol):
    """Prepares RGB pictures for a tower. A frozen dataclass: equal ones prepare alike."""

    @property
    def max_tokens(self) -> int:
        """No picture has more placeholder tokens."""
        ...

    def num_tokens(self, width: int, height: int) -> int:
        """Placeholder tokens of a picture of a size; raises MediaError for one that is too thin."""
        ...

    def __call__(self, image: Image.Image) -> Any:
        """What the model's encoder takes for a picture; raises MediaError as `num_tokens` does."""
        ...


@dataclasses.dataclass(frozen=True)
class ImageFormat:
    """How the prompts of an architecture show pictures, and how those are prepared."""

    load: Callable[[HfConfig, Any], Any]
    """The processor of a `preprocessor_config.json` and the model's own config."""
    marker: str
    """What stands for one picture in the text of a chat; `{}` is its number, from 1."""
    settings: tuple[str, ...] = ()
    """Fields of the processor that `mm_processor_kwargs` may set."""

    @property
    def numbered(self) -> bool:
        """Whether a marker says which of the pictures it stands for."""
        return "{}" in self.marker

    def markers(self, first: int, count: int) -> list[str]:
        """Of `count` pictures, whose numbers begin at `first`."""
        return [self.marker.format(first + i) for i in range(count)]

    def with_settings(self, processor: Any, settings: Mapping[str, Any]) -> Any:
        """The processor with `mm_processor_kwargs`. Raises MediaError for what cannot be set."""
        for name, value in settings.items():
            if name not in self.settings:
                allowed = ", ".join(self.settings) or "none for this model"
                raise MediaError(f"mm_processor_kwargs has {name!r}; allowed are: {allowed}.")
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise MediaError(f"mm_processor_kwargs: {name}={value!r} must be 1 or more.")
        try:
            return dataclasses.replace(processor, **settings)
        except ModelConfigError as error:
            raise MediaError(f"mm_processor_kwargs={dict(settings)}: {error}") from error


def _clip(hf: HfConfig, config: Any) -> ClipImages:
    strategy = "full" if config.full else "default"
    vision = config.vision
    processor = ClipImages.from_hf(hf, patch_size=vision.patch_size, select_strategy=strategy)
    if processor.crop != (vision.image_size, vision.image_size):
        raise ModelConfigError(
            f"The model's preprocessor_config.json makes pictures of {processor.crop} pixels, but "
            f"its vision tower takes {(vision.image_size,) * 2}: crop_size must be the image_size "
            "of the vision_config in config.json. Correct the files."
        )
    return processor


FORMATS: dict[str, ImageFormat] = {
    "LlavaForConditionalGeneration": ImageFormat(_clip, "<image>"),
    "Phi3VForCausalLM": ImageFormat(
        lambda hf, _: Phi3VImages.from_hf(hf), "<|image_{}|>", ("num_crops",)
    ),
    "Qwen2VLForConditionalGeneration": ImageFormat(
        lambda hf, _: Qwen2VLImages.from_hf(hf),
        "<|vision_start|><|image_pad|><|vision_end|>",
        ("min_pixels", "max_pixels"),
    ),
}
"""By architecture."""
