"""Which architecture prepares media how, and what stands for one in its prompts."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from ..errors import ModelConfigError
from .errors import MediaError
from .fields import HfConfig


class Processor(Protocol):
    """Prepares decoded media for a tower. A frozen dataclass: equal ones prepare alike.

    One that has `in_chat(number)` gives the processor for a medium that is one of `number` of its
    kind in a conversation. A size is a picture's width and height; a video's frames, width and
    height; a sound's samples.
    """

    @property
    def max_tokens(self) -> int:
        """No medium has more placeholder tokens."""
        ...

    def num_tokens(self, *size: int) -> int:
        """Placeholder tokens of a medium of a size; raises MediaError for one that has none."""
        ...

    def __call__(self, medium: Any) -> Any:
        """What the model's encoder takes for a medium; raises MediaError as `num_tokens` does."""
        ...


@dataclasses.dataclass(frozen=True)
class MediaFormat:
    """How the prompts of an architecture show media of one kind, and how those are prepared."""

    load: Callable[[HfConfig, Any], Any]
    """The processor of a `preprocessor_config.json` and the model's own config."""
    marker: str
    """What stands for one in the text of a chat; `{}` is its number, from 1."""
    settings: tuple[str, ...] = ()
    """Fields of the processor that `mm_processor_kwargs` may set."""
    cut: bool = False
    """Whether markers are cut out of a text, since the tokenizer may have no token for them."""

    @property
    def numbered(self) -> bool:
        """Whether a marker says which of the media it stands for."""
        return "{}" in self.marker

    def marked(self, number: int) -> str:
        """What stands for a medium, whose number counts from 1."""
        return self.marker.format(number)

    def with_settings(self, processor: Any, settings: Mapping[str, Any]) -> Any:
        """The processor with those of `mm_processor_kwargs` that are for it. Raises MediaError."""
        own = {name: value for name, value in settings.items() if name in self.settings}
        for name, value in own.items():
            _check_setting(name, value)
        try:
            return dataclasses.replace(processor, **own) if own else processor
        except ModelConfigError as error:
            raise MediaError(f"mm_processor_kwargs={own}: {error}") from error


def _check_setting(name: str, value: Any) -> None:
    if name == "fps":
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e4:
            raise MediaError(f"mm_processor_kwargs: fps={value!r} must be a number above 0.")
    elif isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise MediaError(f"mm_processor_kwargs: {name}={value!r} must be 1 or more.")


def check_settings(formats: Mapping[str, MediaFormat], settings: Mapping[str, Any]) -> None:
    """Raises MediaError for a name in `mm_processor_kwargs` that no kind of media has."""
    known = {name for one in formats.values() for name in one.settings}
    for name in settings:
        if name not in known:
            allowed = ", ".join(sorted(known)) or "none for this model"
            raise MediaError(f"mm_processor_kwargs has {name!r}; allowed are: {allowed}.")


def _clip(hf: HfConfig, config: Any) -> Any:
    from .clip import ClipImages

    strategy = "full" if config.full else "default"
    vision = config.vision
    processor = ClipImages.from_hf(hf, patch_size=vision.patch_size, select_strategy=strategy)
    processor.check_side(vision.image_size)
    return processor


def _llava_next(hf: HfConfig, config: Any) -> Any:
    from .llava_next_video import LlavaNextImages

    side, patch = config.vision.image_size, config.vision.patch_size
    return LlavaNextImages.from_hf(hf, side=side, patch_size=patch, pinpoints=config.pinpoints)


def _llava_next_video(hf: HfConfig, config: Any) -> Any:
    from .llava_next_video import LlavaNextVideos

    side, patch = config.vision.image_size, config.vision.patch_size
    return LlavaNextVideos.from_hf(hf, side=side, patch_size=patch, stride=config.stride)


def _llava_onevision(hf: HfConfig, config: Any) -> Any:
    from .llava_onevision import LlavaOnevisionImages

    return LlavaOnevisionImages.from_hf(
        hf,
        side=config.vision.image_size,
        along=config.vision.along,
        pinpoints=config.pinpoints,
        max_squares=config.max_squares,
    )


def _llava_onevision_video(hf: HfConfig, config: Any) -> Any:
    from .llava_onevision import LlavaOnevisionVideos

    vision = config.vision
    return LlavaOnevisionVideos.from_hf(hf, side=vision.image_size, along=vision.along)


def _phi3_v(hf: HfConfig, config: Any) -> Any:
    from .phi3_v import Phi3VImages

    return Phi3VImages.from_hf(hf)


def _qwen2_vl(hf: HfConfig, config: Any) -> Any:
    from .qwen2_vl import Qwen2VLImages

    return Qwen2VLImages.from_hf(hf)


def _qwen2_vl_video(hf: HfConfig, config: Any) -> Any:
    from .qwen2_vl import Qwen2VLVideos

    if "video_processor_type" not in hf:  # the file is of pictures, which may be far larger
        hf = {name: hf[name] for name in hf if name not in ("min_pixels", "max_pixels", "size")}
    return Qwen2VLVideos.from_hf(hf)


def _ultravox(hf: HfConfig, config: Any) -> Any:
    from .log_mel import LogMel
    from .ultravox import UltravoxSounds

    return UltravoxSounds(LogMel.from_hf(hf), config)


def _whisper(hf: HfConfig, config: Any) -> Any:
    from .log_mel import LogMel
    from .whisper import WhisperSounds

    return WhisperSounds(LogMel.from_hf(hf), config.audio)


FORMATS: dict[str, dict[str, MediaFormat]] = {
    "LlavaForConditionalGeneration": {"image": MediaFormat(_clip, "<image>")},
    "LlavaNextForConditionalGeneration": {"image": MediaFormat(_llava_next, "<image>")},
    "LlavaNextVideoForConditionalGeneration": {
        "image": MediaFormat(_llava_next, "<image>"),
        "video": MediaFormat(_llava_next_video, "<video>", ("num_frames", "fps")),
    },
    "LlavaOnevisionForConditionalGeneration": {
        "image": MediaFormat(_llava_onevision, "<image>"),
        "video": MediaFormat(_llava_onevision_video, "<video>", ("num_frames", "fps")),
    },
    "Phi3VForCausalLM": {"image": MediaFormat(_phi3_v, "<|image_{}|>", ("num_crops",))},
    "Qwen2AudioForConditionalGeneration": {
        "audio": MediaFormat(_whisper, "<|audio_bos|><|AUDIO|><|audio_eos|>")
    },
    "Qwen2VLForConditionalGeneration": {
        "image": MediaFormat(
            _qwen2_vl,
            "<|vision_start|><|image_pad|><|vision_end|>",
            ("min_pixels", "max_pixels"),
        ),
        "video": MediaFormat(
            _qwen2_vl_video,
            "<|vision_start|><|video_pad|><|vision_end|>",
            ("min_pixels", "max_pixels", "num_frames", "fps"),
        ),
    },
    "UltravoxModel": {"audio": MediaFormat(_ultravox, "<|audio|>", cut=True)},
}
"""By architecture and kind. What a kind needs is imported where it is loaded."""
