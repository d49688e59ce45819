"""What users give as pictures, made into media of a prompt: decoded now, prepared in threads."""

import hashlib
import math
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeGuard

import numpy as np
from PIL import Image

from ..errors import OptionError, PromptError
from ..multimodal.errors import MediaError
from ..multimodal.image import ImageFeatureData, ImagePixelData
from ..multimodal.images import MAX_PIXELS, digest, to_rgb
from ..multimodal.media import fetch
from ..multimodal.policy import MediaPolicy
from ..multimodal.processors import ImageProcessor
from .media import Medium, Opened, Prepared, done
from .options import EngineOptions
from .vision import VisionSpec

Picture = Image.Image | ImagePixelData | ImageFeatureData
MOST_PIXELS = 4 * MAX_PIXELS
"""Of all pictures of a prompt, decoded: three bytes each are in memory until they are prepared."""
_MOST_THREADS = 16
_MOST_FETCHED = 32
_KEPT_BYTES = 2**29
"""Of prepared pictures in host memory, so that one sent again and again is prepared once."""
_TIMEOUTS = ("QUIRE_IMAGE_FETCH_TIMEOUT", "VLLM_IMAGE_FETCH_TIMEOUT")
"""Environment variables, seconds; the first that is set counts."""


class MediaInputs:
    """Opens pictures for one model. Any thread may call it."""

    def __init__(self, vision: VisionSpec, options: EngineOptions) -> None:
        self.vision = vision
        self._policy = MediaPolicy(
            allowed_local_media_path=options.allowed_local_media_path,
            allowed_media_domains=tuple(options.allowed_media_domains or ()),
            allow_private_addresses=options.allow_private_media_addresses,
            timeout_s=_timeout(),
        )
        self.takes_features = options.image_input_type == "image_features"
        workers = min(_MOST_THREADS, os.cpu_count() or 1)
        self.threads = ThreadPoolExecutor(workers, "quire-media")
        """For whatever is done to pictures."""
        self._kept = _Kept(_KEPT_BYTES)
        self._fetching = ThreadPoolExecutor(_MOST_FETCHED, "quire-fetch")

    def open(self, data: Any, settings: Mapping[str, Any] | None) -> list[Opened]:
        """The pictures of one prompt, from its `multi_modal_data` and `mm_processor_kwargs`.

        Raises PromptError or MediaError.
        """
        if _were_read(data):
            return [Opened(one.num_tokens, one.grid, one.preparing) for one in data]
        given = _pictures(data)
        self._check_number(given)
        processor = self.vision.processor
        if settings:
            processor = self.vision.format.with_settings(processor, settings)
        opened: list[Opened] = []
        pixels = 0
        for picture in map(self._decoded, given):
            if isinstance(picture, Image.Image):
                pixels += picture.width * picture.height
            if pixels > MOST_PIXELS:
                raise MediaError(
                    f"The pictures of a prompt have more than {MOST_PIXELS} pixels together. Send "
                    "fewer or smaller ones."
                )
            opened.append(self._open(picture, processor))
        return opened

    def fetch(self, sources: Sequence[Any]) -> list[Any]:
        """Pictures that are given as URLs, side by side; what is none stays as it is.

        Blocks. Raises MediaError, or PromptError where there are too many.
        """
        self._check_number(sources)
        return list(self._fetching.map(self._fetched, sources))

    def _check_number(self, pictures: Sequence[Any]) -> None:
        if len(pictures) > self.vision.limit:
            raise PromptError(
                f"the prompt has {len(pictures)} pictures, and limit_mm_per_prompt allows "
                f"{self.vision.limit}. Send fewer, or make the engine with a higher one."
            )

    def _fetched(self, source: Any) -> Any:
        return fetch(source, self._policy) if isinstance(source, str) else source

    def forget(self) -> None:
        """Keeps nothing of what was prepared so far."""
        self._kept = _Kept(_KEPT_BYTES)

    def close(self) -> None:
        """Drops what has not begun."""
        for threads in (self.threads, self._fetching):
            threads.shutdown(wait=False, cancel_futures=True)

    def _decoded(self, given: Any) -> Picture:
        """An RGB picture, or what is given as an array that no processor sees."""
        if isinstance(given, ImageFeatureData) != self.takes_features:
            taken = "ImageFeatureData" if self.takes_features else "pictures"
            kind = "image_features" if self.takes_features else "pixel_values"
            raise PromptError(
                f"a picture is given as {type(given).__name__}, but an engine with "
                f"image_input_type={kind!r} takes {taken} alone."
            )
        if isinstance(given, ImagePixelData) and isinstance(given.image, Image.Image):
            given = given.image
        return given if isinstance(given, ImagePixelData | ImageFeatureData) else to_rgb(given)

    def _open(self, picture: Picture, processor: ImageProcessor) -> Opened:
        if isinstance(picture, ImageFeatureData):
            return self._open_array(picture.image_features, "image features")
        if isinstance(picture, ImagePixelData):
            return self._open_array(picture.image, "pixels")
        grid = self.vision.grid(processor, picture)
        num_tokens = processor.num_tokens(*picture.size)
        if num_tokens > self.vision.max_tokens:  # before it is made so large
            raise PromptError(
                f"a picture of {picture.width}x{picture.height} pixels has {num_tokens} features, "
                f"and this engine takes {self.vision.max_tokens} at most. Send a smaller one, or "
                "make the engine with a higher max_model_len or other mm_processor_kwargs."
            )
        return Opened(num_tokens, grid, self.threads.submit(self._prepare, picture, processor))

    def _prepare(self, image: Image.Image, processor: ImageProcessor) -> Prepared:
        hashed = hashlib.sha256(repr(processor).encode())
        hashed.update(digest(image))
        name = hashed.digest()
        inputs = self._kept.get(name)
        if inputs is None:
            inputs = processor(image)
            self._kept.put(name, inputs)
        return Prepared(name, inputs)

    def _open_array(self, given: Any, what: str) -> Opened:
        """Pixels or features as the encoder takes them: no processor sees them."""
        array = np.asarray(given, np.float32)
        expected = getattr(self.vision.encoder, "picture_shape", None)
        if expected is None:
            raise PromptError(
                f"{what} are given as an array, but this model takes whole pictures. Give a PIL "
                "image or a numpy array [H, W, 3]."
            )
        if array.shape not in (expected, (1, *expected)):
            raise PromptError(
                f"{what} have shape {list(array.shape)}; this model takes {[1, *expected]}."
            )
        array = np.ascontiguousarray(array.reshape(expected))
        hashed = hashlib.sha256(what.encode())
        hashed.update(array)
        prepared = Prepared(hashed.digest(), array)
        return Opened(self.vision.encoder.num_tokens(array), None, done(prepared))


def _timeout() -> float:
    """Seconds in which a picture must be fetched. Raises OptionError."""
    name = next((name for name in _TIMEOUTS if os.environ.get(name)), None)
    if name is None:
        return MediaPolicy.timeout_s
    try:
        seconds = float(os.environ[name])
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise OptionError(f"{name}={os.environ[name]!r} must be seconds above 0, such as 5.")
    return seconds


class _Kept:
    """What was prepared last, by digest, up to so many bytes. Any thread may use it."""

    def __init__(self, most_bytes: int) -> None:
        self._left = most_bytes
        self._lock = threading.Lock()
        self._inputs: dict[bytes, Any] = {}  # the least recently used first

    def get(self, name: bytes) -> Any:
        """None where it is not kept."""
        with self._lock:
            if (inputs := self._inputs.pop(name, None)) is not None:
                self._inputs[name] = inputs
            return inputs

    def put(self, name: bytes, inputs: Any) -> None:
        """Keeps it, in the place of others if need be."""
        with self._lock:
            if name in self._inputs:
                return
            self._inputs[name] = inputs
            self._left -= _bytes_of(inputs)
            while self._left < 0:
                self._left += _bytes_of(self._inputs.pop(next(iter(self._inputs))))


def _bytes_of(inputs: Any) -> int:
    """Of an array, or of the arrays of a dataclass."""
    arrays = [inputs] if isinstance(inputs, np.ndarray) else vars(inputs).values()
    return sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))


def _were_read(data: Any) -> TypeGuard[tuple[Medium, ...]]:
    """Whether these are the media of a prompt that was read before."""
    return isinstance(data, tuple) and all(isinstance(one, Medium) for one in data)


def _pictures(data: Any) -> list[Any]:
    """The pictures in `multi_modal_data`, in every form users write it."""
    if isinstance(data, ImagePixelData | ImageFeatureData):
        return [data]
    if not isinstance(data, Mapping):
        raise PromptError(
            f"multi_modal_data is a {type(data).__name__}; give a dict such as "
            '{"image": picture}, or {"image": [picture, picture]}.'
        )
    for kind in data:
        if kind != "image":
            raise PromptError(
                f"multi_modal_data has {kind!r}, and this model takes pictures alone: "
                '{"image": ...}.'
            )
    given = data.get("image")
    if given is None:
        return []
    return list(given) if isinstance(given, list | tuple) else [given]
