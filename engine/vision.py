"""How a model that sees takes pictures: prepared on the host, encoded a run at a time."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import jax
import numpy as np

from ..errors import OptionError, UnsupportedModelError
from ..models.config import TextConfig
from .buckets import ladder
from .checkpoint import read_preprocessor_config
from .feature_pool import PAGE
from .media import Grid, Medium
from .options import MOST_IMAGES, EngineOptions

if TYPE_CHECKING:
    from PIL import Image

    from ..multimodal.processors import ImageFormat, ImageProcessor

_RUN_TOKENS = 4096
"""Features that the largest run makes, unless a single picture has more."""


class Encoder(Protocol):
    """How prepared pictures become inputs of `model.encode`, whose shapes `size` alone decides."""

    @property
    def least(self) -> int:
        """The smallest `size` of a run, and what others are multiples of."""
        ...

    def units(self, picture: Any) -> int:
        """What a picture takes of a run's `size`: pictures, crops or patches."""
        ...

    def inputs(self, pictures: Sequence[Any], size: int) -> dict[str, np.ndarray]:
        """Of one run: pictures of together at most `size` units."""
        ...

    def size_for(self, tokens: int) -> int:
        """The smallest size that takes whatever pictures have together `tokens` features."""
        ...

    def num_patches(self, size: int) -> int:
        """What the tower works on in a run."""
        ...

    def num_rows(self, size: int) -> int:
        """Rows that `encode` gives for `size`."""
        ...

    def num_tokens(self, picture: Any) -> int:
        """Rows of one picture; pictures' rows stand one after the other, padding last."""
        ...

    def abstract(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of `inputs`."""
        ...


@dataclasses.dataclass(frozen=True)
class Run:
    """Pictures that are encoded together."""

    units: int
    """Its size, padding included."""
    num_rows: int
    """What `encode` gives."""
    inputs: dict[str, np.ndarray]
    places: list[np.ndarray]
    """The rows for the features of each picture."""

    def rows(self, padding: int) -> np.ndarray:
        """int32 [num_rows]: where each goes; `padding` is nowhere."""
        rows = np.full(self.num_rows, padding, np.int32)
        known = np.concatenate(self.places)
        rows[: len(known)] = known
        return rows


@dataclasses.dataclass(frozen=True)
class VisionSpec:
    """What an engine knows of a model that sees."""

    format: "ImageFormat"
    processor: "ImageProcessor"
    encoder: Encoder
    image_token: int
    """The token that stands for one feature of a picture."""
    limit: int
    """Most pictures of one prompt."""
    max_tokens: int
    """Most features of one picture."""

    @property
    def rotates_by_three(self) -> bool:
        """Whether tokens stand along time, height and width."""
        return hasattr(self.encoder, "token_grid")

    def grid(self, processor: Any, image: "Image.Image") -> Grid | None:
        """How the features of a picture lie, for models that rotate by it."""
        return processor.token_grid(*image.size) if self.rotates_by_three else None

    @property
    def columns(self) -> int:
        """What a step must be told of each token, as in `batch.Layout`."""
        return 4 if self.rotates_by_three else 1

    def sizes(self, max_model_len: int, growth: int) -> tuple[int, ...]:
        """Of runs, ascending; any one picture fits into the last."""
        most = max(self.max_tokens, min(_RUN_TOKENS, max_model_len))
        return ladder(self.encoder.least, self.encoder.size_for(most), growth)


def runs(
    encoder: Encoder, sizes: Sequence[int], media: Iterable[tuple[Medium, np.ndarray]]
) -> Iterator[Run]:
    """Media packed into runs, in order, with the rows of each."""
    for pack in _packs(encoder, sizes[-1], media):
        pictures = [medium.inputs for medium, _ in pack]
        units = sum(map(encoder.units, pictures))
        size = next(size for size in sizes if size >= units)
        inputs = encoder.inputs(pictures, size)
        yield Run(size, encoder.num_rows(size), inputs, [rows for _, rows in pack])


def _packs(
    encoder: Encoder, most: int, media: Iterable[tuple[Medium, np.ndarray]]
) -> Iterator[list[tuple[Medium, np.ndarray]]]:
    pack: list[tuple[Medium, np.ndarray]] = []
    total = 0
    for medium, rows in media:
        units = encoder.units(medium.inputs)
        if pack and total + units > most:
            yield pack
            pack, total = [], 0
        pack.append((medium, rows))
        total += units
    if pack:
        yield pack


def vision_spec(
    architecture: type[Any],
    hf_config: Mapping[str, Any],
    config: TextConfig,
    folder: Path,
    options: EngineOptions,
) -> VisionSpec | None:
    """None for a model of text alone.

    Raises ModelConfigError, UnsupportedModelError, or OptionError for options about pictures that
    do not fit the model.
    """
    if not hasattr(architecture, "encoder"):
        _check_asks_for_no_pictures(options)
        return None
    try:
        from ..multimodal.processors import FORMATS
    except ImportError as error:  # Pillow, which models of text do without
        raise UnsupportedModelError(
            f"{architecture.__name__} sees pictures, and that needs Pillow ({error}): "
            "pip install 'quire[images]'."
        ) from error

    known = next(FORMATS[name] for name in hf_config["architectures"] if name in FORMATS)
    processor = known.load(read_preprocessor_config(folder), config)
    try:
        processor = known.with_settings(processor, options.mm_processor_kwargs or {})
    except ValueError as error:
        raise OptionError(str(error)) from error
    image_token: int = vars(config)["image_token"]
    encoder = _encoder(architecture, config, options)
    _check_image_options(options, image_token, processor, encoder)
    limit = (options.limit_mm_per_prompt or {}).get("image", MOST_IMAGES)
    most = min(processor.max_tokens, config.max_model_len)
    return VisionSpec(known, processor, encoder, image_token, limit, most)


def feature_rows(width: int, itemsize: int, max_model_len: int, gigabytes: float) -> int:
    """Rows for features on the device: what `gigabytes` (2^30 bytes) hold, but at least a prompt.

    Args:
        width: numbers of a feature.
        itemsize: bytes of a number.
    """
    rows = max(int(gigabytes * 2**30) // (width * itemsize), max_model_len)
    return -(-rows // PAGE) * PAGE


def _check_asks_for_no_pictures(options: EngineOptions) -> None:
    for name in (
        "mm_processor_kwargs",
        "image_token_id",
        "image_input_shape",
        "image_feature_size",
    ):
        if getattr(options, name):
            raise OptionError(
                f"{name}={getattr(options, name)!r} is about pictures, and this model takes text "
                "alone. Leave it out, or choose a model that sees."
            )


def _encoder(architecture: type[Any], config: TextConfig, options: EngineOptions) -> Encoder:
    if options.image_input_type == "pixel_values":
        return architecture.encoder(config)
    if not hasattr(architecture, "state_encoder"):
        raise OptionError(
            f"image_input_type={options.image_input_type!r} is not for {architecture.__name__}, "
            "which takes whole pictures alone. Leave it out."
        )
    return architecture.state_encoder(config)


def _check_image_options(
    options: EngineOptions, image_token: int, processor: "ImageProcessor", encoder: Encoder
) -> None:
    """The older options say what the model's files say already; they must agree."""
    if options.image_token_id not in (None, image_token):
        raise OptionError(
            f"image_token_id={options.image_token_id} is not the model's, which is {image_token}. "
            "Leave it out."
        )
    size = options.image_feature_size
    if size is not None and size != processor.max_tokens:
        raise OptionError(
            f"image_feature_size={size}, but a picture of this model has up to "
            f"{processor.max_tokens} features. Leave it out."
        )
    if (shape := options.image_input_shape) is not None:
        taken = getattr(encoder, "picture_shape", None)
        expected = "whole pictures" if taken is None else ",".join(map(str, (1, *taken)))
        if shape.replace(" ", "") != expected:
            raise OptionError(
                f"image_input_shape={shape!r}, but this model takes {expected}. Leave it out."
            )
