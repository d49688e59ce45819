"""What an engine knows of the media its model takes: which kinds, prepared and encoded how."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import OptionError, UnsupportedModelError
from ..models.config import TextConfig
from ..multimodal import kinds
from ..multimodal.errors import MediaError
from ..multimodal.names import NOUNS
from ..multimodal.processors import FORMATS, check_settings
from .buckets import Encoding, ladder
from .checkpoint import Source, read_preprocessor_config
from .encoders import Encoder
from .feature_pool import PAGE
from .media import Grid
from .options import MOST_MEDIA, EngineOptions

if TYPE_CHECKING:
    from ..multimodal.kinds import Kind
    from ..multimodal.processors import MediaFormat, Processor

_RUN_TOKENS = 4096
"""Features that the largest run makes, unless a single medium has more."""
_EXTRAS = {"image": "images", "video": "video", "audio": "audio"}
"""What is installed for a kind, as `quire[...]`."""


@dataclasses.dataclass(frozen=True)
class KindSpec:
    """How the model takes media of one kind."""

    kind: "Kind"
    format: "MediaFormat"
    processor: "Processor"
    encoder: Encoder
    encoded_as: str
    """The kind whose programs it shares, most often its own."""
    token: int
    """The token that stands for one feature."""
    limit: int
    """Most media of one prompt."""
    max_tokens: int
    """Most features of one medium."""

    @property
    def max_part_tokens(self) -> int:
        """Most features of what is encoded at once: a medium, or a part of it."""
        return getattr(self.processor, "max_part_tokens", self.max_tokens)


@dataclasses.dataclass(frozen=True)
class MediaSpec:
    """How the model takes media."""

    kinds: dict[str, KindSpec]
    """By name, one at least."""
    missing: dict[str, str]
    """Kinds that the model takes, too, and why this installation does not."""

    @property
    def encoders(self) -> dict[str, Encoder]:
        """By the kind that names their programs."""
        return {one.encoded_as: one.encoder for one in self.kinds.values()}

    @property
    def formats(self) -> "dict[str, MediaFormat]":
        """By kind."""
        return {name: one.format for name, one in self.kinds.items()}

    @property
    def rotates_by_three(self) -> bool:
        """Whether tokens stand along time, height and width."""
        return any(hasattr(encoder, "token_grid") for encoder in self.encoders.values())

    def grid(self, processor: Any, size: tuple[int, ...]) -> Grid | None:
        """How the features of a medium lie, for models that rotate by it."""
        return processor.token_grid(*size) if self.rotates_by_three else None

    @property
    def columns(self) -> int:
        """What a step must be told of each token, as in `batch.Layout`."""
        return 4 if self.rotates_by_three else 1

    def processors(self, settings: Mapping[str, Any]) -> "dict[str, Processor]":
        """By kind, with `mm_processor_kwargs`. Raises MediaError."""
        check_settings(self.formats, settings)
        return {
            name: one.format.with_settings(one.processor, settings)
            for name, one in self.kinds.items()
        }

    def encodings(self, max_model_len: int, growth: int) -> tuple[Encoding, ...]:
        """The programs of each encoder, ascending; any part of a medium fits into its last."""
        made: list[Encoding] = []
        for name, encoder in self.encoders.items():
            parts = (k.max_part_tokens for k in self.kinds.values() if k.encoded_as == name)
            largest = min(max(parts), max_model_len)
            most = encoder.size_for(max(largest, min(_RUN_TOKENS, max_model_len)))
            made += [Encoding(name, size) for size in ladder(encoder.least, most, growth)]
        return tuple(made)


def media_spec(
    architecture: type[Any],
    hf_config: Mapping[str, Any],
    config: TextConfig,
    source: Source,
    options: EngineOptions,
) -> MediaSpec | None:
    """None for a model of text alone.

    Raises ModelConfigError, UnsupportedModelError, or OptionError for options about media that do
    not fit the model.
    """
    if not hasattr(architecture, "encoders"):
        _check_asks_for_no_media(options)
        return None
    formats = next(FORMATS[name] for name in hf_config["architectures"] if name in FORMATS)
    encoders = _encoders(architecture, config, options)
    settings = options.mm_processor_kwargs or {}
    loaded, missing = _loaded(formats)
    if not loaded:
        raise UnsupportedModelError(f"{architecture.__name__}: {' '.join(missing.values())}")
    made: dict[str, KindSpec] = {}
    for name, kind in loaded.items():
        known = formats[name]
        processor = known.load(read_preprocessor_config(name, *source.folders(name)), config)
        try:
            check_settings(formats, settings)
            processor = known.with_settings(processor, settings)
        except MediaError as error:
            raise OptionError(str(error)) from error
        made[name] = KindSpec(
            kind=kind,
            format=known,
            processor=processor,
            encoder=encoders[name],
            encoded_as=next(k for k in loaded if encoders[k] == encoders[name]),
            token=vars(config)[f"{name}_token"],
            limit=(options.limit_mm_per_prompt or {}).get(name, MOST_MEDIA),
            max_tokens=min(processor.max_tokens, config.max_model_len),
        )
    _check_image_options(options, made.get("image"))
    return MediaSpec(made, missing)


def feature_rows(width: int, itemsize: int, max_model_len: int, gigabytes: float) -> int:
    """Rows for features on the device: what `gigabytes` (2^30 bytes) hold, but at least a prompt.

    Args:
        width: numbers of a feature.
        itemsize: bytes of a number.
    """
    rows = max(int(gigabytes * 2**30) // (width * itemsize), max_model_len)
    return -(-rows // PAGE) * PAGE


def _loaded(names: Iterable[str]) -> "tuple[dict[str, Kind], dict[str, str]]":
    """The kinds for which all is installed, and for each of the others what to do about it."""
    loaded: dict[str, Kind] = {}
    missing: dict[str, str] = {}
    for name in names:
        try:
            loaded[name] = kinds.load(name)
        except ImportError as error:  # of what models of text do without
            missing[name] = (
                f"It takes {NOUNS[name]}, and what decodes them is not installed ({error}): "
                f"pip install 'quire[{_EXTRAS[name]}]'."
            )
    return loaded, missing


def _check_asks_for_no_media(options: EngineOptions) -> None:
    _check_older_options(options, "this model takes text alone")
    if options.mm_processor_kwargs:
        raise OptionError(
            f"mm_processor_kwargs={options.mm_processor_kwargs!r} is about media, and this model "
            "takes text alone. Leave it out, or choose a model that takes others."
        )


def _check_older_options(options: EngineOptions, why: str) -> None:
    """Raises OptionError for any of the four options about pictures that is set."""
    for name in ("image_token_id", "image_input_shape", "image_feature_size"):
        if getattr(options, name):
            raise OptionError(
                f"{name}={getattr(options, name)!r} is about pictures, and {why}. Leave it out, "
                "or choose a model that sees."
            )
    if options.image_input_type != "pixel_values":
        raise OptionError(
            f"image_input_type={options.image_input_type!r} is about pictures, and {why}. Leave "
            "it out, or choose a model that sees."
        )


def _encoders(
    architecture: type[Any], config: TextConfig, options: EngineOptions
) -> dict[str, Encoder]:
    encoders: dict[str, Encoder] = architecture.encoders(config)
    if options.image_input_type == "pixel_values" or "image" not in encoders:
        return encoders
    if not hasattr(architecture, "state_encoder"):
        raise OptionError(
            f"image_input_type={options.image_input_type!r} is not for {architecture.__name__}, "
            "which takes whole pictures alone. Leave it out."
        )
    return encoders | {"image": architecture.state_encoder(config)}


def _check_image_options(options: EngineOptions, images: KindSpec | None) -> None:
    """The older options say what the model's files say already; they must agree."""
    if images is None:
        _check_older_options(options, "this model takes none")
        return
    if options.image_token_id not in (None, images.token):
        raise OptionError(
            f"image_token_id={options.image_token_id} is not the model's, which is {images.token}. "
            "Leave it out."
        )
    size = options.image_feature_size
    if size is not None and size != images.processor.max_tokens:
        raise OptionError(
            f"image_feature_size={size}, but a picture of this model has up to "
            f"{images.processor.max_tokens} features. Leave it out."
        )
    if (shape := options.image_input_shape) is not None:
        taken = getattr(images.encoder, "picture_shape", None)
        expected = "whole pictures" if taken is None else ",".join(map(str, (1, *taken)))
        if shape.replace(" ", "") != expected:
            raise OptionError(
                f"image_input_shape={shape!r}, but this model takes {expected}. Leave it out."
            )
