"""What users give as media, made into media of a prompt: decoded now, prepared in threads."""

import hashlib
import math
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from ..errors import OptionError, PromptError
from ..multimodal.errors import MediaError
from ..multimodal.image import ImageFeatureData, ImagePixelData
from ..multimodal.media import fetch
from ..multimodal.names import NOUNS
from ..multimodal.policy import MediaPolicy
from .media import Medium, Opened, Prepared, done
from .media_spec import KindSpec, MediaSpec
from .options import EngineOptions

if TYPE_CHECKING:
    from ..multimodal.processors import Processor

MOST_BYTES = 768 << 20
"""Of all media of a prompt, decoded, which are in memory until they are prepared."""
_MOST_THREADS = 4
"""Of those that read and of those that prepare: more keep the step's thread, and the first medium
of a call, from the interpreter's lock, and a GPU's tower is behind four long before."""
_MOST_FETCHED = 32
_KEPT_BYTES = 2**29
"""Of prepared media in host memory, so that one sent again and again is prepared once."""
_TIMEOUTS = {"image": 5.0, "video": 30.0, "audio": 10.0}
"""Seconds in which one must be fetched, unless QUIRE_IMAGE_FETCH_TIMEOUT or its like says."""


class MediaInputs:
    """Opens media for one model. Any thread may call it."""

    def __init__(self, spec: MediaSpec, options: EngineOptions) -> None:
        self.spec = spec
        self._policies = {
            kind: MediaPolicy(
                allowed_local_media_path=options.allowed_local_media_path,
                allowed_media_domains=tuple(options.allowed_media_domains or ()),
                allow_private_addresses=options.allow_private_media_addresses,
                timeout_s=_timeout(kind),
            )
            for kind in spec.kinds
        }
        self.takes_features = options.image_input_type == "image_features"
        workers = min(_MOST_THREADS, os.cpu_count() or 1)
        self.reading = ThreadPoolExecutor(workers, "quire-read-media")
        """For reading prompts with media, which decodes those."""
        self._preparing = ThreadPoolExecutor(workers, "quire-prepare-media")
        # of its own, so that the first medium is prepared before the last one is decoded
        self._kept = _Kept(_KEPT_BYTES)
        self._fetching = ThreadPoolExecutor(_MOST_FETCHED, "quire-fetch")

    def open(
        self, data: Any, settings: Mapping[str, Any] | None, *, chat: bool = False
    ) -> list[Opened]:
        """The media of one prompt, from its `multi_modal_data` and `mm_processor_kwargs`.

        Raises PromptError or MediaError.

        Args:
            chat: the prompt is a conversation.
        """
        if _were_read(data):
            return [Opened(one.kind, one.num_tokens, one.grid, one.preparing) for one in data]
        given = self._items(data)
        for kind, items in given.items():
            self._check_number(kind, len(items))
        processors = self.spec.processors(settings or {})
        if chat:
            processors |= _in_chat(processors, given)
        opened: list[Opened] = []
        left = MOST_BYTES
        for kind, items in given.items():
            for item in items:
                medium = self._decoded(kind, item, processors[kind])
                left -= self._size_in_bytes(kind, medium)
                if left < 0:
                    raise MediaError(
                        f"The media of a prompt take more than {MOST_BYTES >> 20} MiB once they "
                        "are decoded. Send fewer or smaller ones."
                    )
                opened.append(self._open(kind, medium, processors[kind]))
        return opened

    def fetch(self, sources: Sequence[tuple[str, Any]]) -> dict[str, list[Any]]:
        """Media by kind, from pairs of those; what is given as a URL is fetched, side by side.

        Blocks. Raises MediaError, or PromptError where there are too many.
        """
        found: dict[str, list[Any]] = {kind: [] for kind, _ in sources}
        for kind in found:
            self._check_number(kind, sum(kind == other for other, _ in sources))
        media = self._fetching.map(lambda pair: self._fetched(*pair), sources)
        for (kind, _), medium in zip(sources, media, strict=True):
            found[kind].append(medium)
        return found

    def _items(self, data: Any) -> dict[str, list[Any]]:
        """What is in `multi_modal_data`, by kind, in every form users write it."""
        if isinstance(data, ImagePixelData | ImageFeatureData):
            data = {"image": [data]}
        if not isinstance(data, Mapping):
            raise PromptError(
                f"multi_modal_data is a {type(data).__name__}; give a dict such as "
                '{"image": picture}, or {"image": [picture, picture]}.'
            )
        return {
            kind: [] if given is None else self._kind(kind).kind.items(given)
            for kind, given in data.items()
        }

    def _kind(self, name: str) -> KindSpec:
        if why := self.spec.missing.get(name):
            raise PromptError(f"the prompt has {NOUNS[name]}, which this engine cannot read. {why}")
        if (kind := self.spec.kinds.get(name)) is None:
            taken = " and ".join(NOUNS[kind] for kind in self.spec.kinds)
            example = ", ".join(f'"{kind}": ...' for kind in self.spec.kinds)
            raise PromptError(
                f"the prompt has media of the kind {name!r}, and this model takes {taken} alone: "
                f"{{{example}}}."
            )
        return kind

    def _check_number(self, kind: str, number: int) -> None:
        if number > (limit := self._kind(kind).limit):
            raise PromptError(
                f"the prompt has {number} {NOUNS[kind]}, and limit_mm_per_prompt allows {limit}. "
                "Send fewer, or make the engine with a higher one."
            )

    def _fetched(self, kind: str, source: Any) -> Any:
        return fetch(source, self._policies[kind]) if isinstance(source, str) else source

    def forget(self) -> None:
        """Keeps nothing of what was prepared so far."""
        self._kept = _Kept(_KEPT_BYTES)

    def close(self) -> None:
        """Drops what has not begun."""
        for threads in (self.reading, self._preparing, self._fetching):
            threads.shutdown(wait=False, cancel_futures=True)

    def _decoded(self, kind: str, given: Any, processor: "Processor") -> Any:
        """A decoded medium, or what is given as an array that no processor sees."""
        if kind == "image":
            if isinstance(given, ImageFeatureData) != self.takes_features:
                taken = "ImageFeatureData" if self.takes_features else "pictures"
                how = "image_features" if self.takes_features else "pixel_values"
                raise PromptError(
                    f"a picture is given as {type(given).__name__}, but an engine with "
                    f"image_input_type={how!r} takes {taken} alone."
                )
            if isinstance(given, ImagePixelData) and hasattr(given.image, "mode"):
                given = given.image  # of Pillow
            if isinstance(given, ImagePixelData | ImageFeatureData):
                return given
        if isinstance(given, str | os.PathLike):
            given = _read(Path(given))
        return self.spec.kinds[kind].kind.decode(given, processor)

    def _size_in_bytes(self, kind: str, medium: Any) -> int:
        if isinstance(medium, ImagePixelData | ImageFeatureData):
            return 0  # the user's own array
        known = self.spec.kinds[kind].kind
        return math.prod(known.size(medium)) * known.item_bytes

    def _open(self, kind: str, medium: Any, processor: "Processor") -> Opened:
        if isinstance(medium, ImageFeatureData):
            return self._open_array(medium.image_features, "image features")
        if isinstance(medium, ImagePixelData):
            return self._open_array(medium.image, "pixels")
        spec = self.spec.kinds[kind]
        size = spec.kind.size(medium)
        grid = self.spec.grid(processor, size)
        num_tokens = processor.num_tokens(*size)
        if num_tokens > spec.max_tokens:  # before it is made so large
            raise PromptError(
                f"a {kind} of size {'x'.join(map(str, size))} has {num_tokens} features, "
                f"and this engine takes {spec.max_tokens} at most. Send a smaller one, or make "
                "the engine with a higher max_model_len or other mm_processor_kwargs."
            )
        preparing = self._preparing.submit(self._prepare, spec, medium, processor)
        return Opened(kind, num_tokens, grid, preparing)

    def _prepare(self, spec: KindSpec, medium: Any, processor: "Processor") -> Prepared:
        hashed = hashlib.sha256(repr(processor).encode())
        hashed.update(spec.kind.digest(medium))
        name = hashed.digest()
        inputs = self._kept.get(name)
        if inputs is None:
            inputs = processor(medium)
            self._kept.put(name, inputs)
        return Prepared(name, inputs)

    def _open_array(self, given: Any, what: str) -> Opened:
        """Pixels or features as the encoder takes them: no processor sees them."""
        array = np.asarray(given, np.float32)
        encoder = self.spec.kinds["image"].encoder
        expected = getattr(encoder, "picture_shape", None)
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
        return Opened("image", encoder.num_tokens(array), None, done(prepared))


def _in_chat(processors: "dict[str, Processor]", given: dict[str, list[Any]]) -> dict[str, Any]:
    """Those that prepare a medium otherwise where it is one of so many in a conversation."""
    return {
        kind: processor.in_chat(len(given[kind]))  # pyright: ignore[reportAttributeAccessIssue]
        for kind, processor in processors.items()
        if kind in given and hasattr(processor, "in_chat")
    }


def _read(path: Path) -> bytes:
    """A file of the user's own. Raises MediaError."""
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise MediaError(
            f"{str(path)[:200]!r} cannot be read ({error}). Give the path of a file."
        ) from error


def _timeout(kind: str) -> float:
    """Seconds in which a medium must be fetched. Raises OptionError."""
    names = (f"{whose}_{kind.upper()}_FETCH_TIMEOUT" for whose in ("QUIRE", "VLLM"))
    name = next((name for name in names if os.environ.get(name)), None)
    if name is None:
        return _TIMEOUTS[kind]
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
