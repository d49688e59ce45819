"""The kinds of media: what a prompt may give for each, and what is known of one once decoded."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from .names import KINDS


@dataclasses.dataclass(frozen=True)
class Kind:
    """How one kind of media is decoded."""

    items: Callable[[Any], list[Any]]
    """The media of a prompt, given as one or as a list."""
    decode: Callable[[Any, Any], Any]
    """A medium from what was given for it, for a processor. Raises MediaError."""
    size: Callable[[Any], tuple[int, ...]]
    """Of a decoded medium, as the arguments of a processor's `num_tokens`."""
    item_bytes: int
    """Bytes that each of the items of a size takes, decoded."""
    digest: Callable[[Any], bytes]
    """Equal for equal decoded media."""


def load(name: str) -> Kind:
    """One of KINDS. Raises ImportError where what decodes it is not installed."""
    match name:
        case "image":
            from . import images

            return Kind(
                items=_many,
                decode=lambda given, _: images.to_rgb(given),
                size=lambda image: image.size,
                item_bytes=3,
                digest=images.digest,
            )
        case "audio":
            from . import sounds

            return Kind(
                items=_sounds,
                decode=lambda given, processor: sounds.to_samples(given, processor.sampling_rate),
                size=lambda samples: samples.shape,
                item_bytes=4,
                digest=sounds.digest,
            )
        case "video":
            from . import videos

            return Kind(
                items=_videos,
                decode=lambda given, processor: (
                    videos.to_frames(
                        given, num_frames=processor.num_frames, fps=processor.fps
                    ).pixels
                ),
                size=_video_size,
                item_bytes=3,
                digest=lambda pixels: videos.digest(videos.Frames(pixels, None)),
            )
        case _:
            raise ValueError(f"no kind {name!r}; allowed are {', '.join(KINDS)}")


def _many(given: Any) -> list[Any]:
    return list(given) if isinstance(given, list | tuple) else [given]


def _sounds(given: Any) -> list[Any]:
    """A tuple of samples and rate is one; a list may also be the samples of one, as numbers."""
    if isinstance(given, tuple) and len(given) == 2 and _is_number(given[1]):
        return [given]
    if isinstance(given, list) and given and all(map(_is_number, given)):
        return [np.asarray(given, np.float32)]
    return _many(given)


def _videos(given: Any) -> list[Any]:
    """A list of pictures is one video, of its frames."""
    if isinstance(given, list | tuple) and given and not any(map(_is_video, given)):
        return [given]
    return _many(given)


def _video_size(pixels: np.ndarray) -> tuple[int, int, int]:
    frames, height, width, _ = pixels.shape
    return frames, width, height


def _is_video(value: Any) -> bool:
    """Rather than a frame. The bytes of a file may be either, and are a video's."""
    if isinstance(value, bytes | str | list | tuple | os.PathLike):
        return True
    return isinstance(value, np.ndarray) and value.ndim == 4


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number)
