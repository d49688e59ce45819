"""LLaVA-OneVision (arXiv:2408.03326): pictures in tiles, and videos, through SigLIP into Qwen 2.

The tower sees the whole of a picture as one square, and a grid of squares of a larger version. Of
the grid, what was padded is cut off, what is still too large is scaled down, and a learned feature
ends each row. Features of a video's frames are scaled to half the edge, and one such feature ends
the video. So every feature is a sum of at most four rows of the projector, which the host names.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..errors import UnsupportedModelError
from . import hf_config, llava, projector, qwen2, siglip, squares
from .checkpoint_map import CheckpointMap, Piece
from .layers import check_activation, weight
from .llama import LlamaConfig, canonical_name
from .projector import Projector
from .qwen2 import Qwen2, Qwen2Config
from .siglip import SiglipConfig, SiglipTower
from .squares import Blend, BlendEncoder, Size, SquaresLike, TileEncoder, ended_blend

_SO400M: dict[str, Any] = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
"""The tower where a file has no `vision_config`."""
_EDGES = range(384, 2305, 384)
_PINPOINTS = tuple((height, width) for height in _EDGES for width in _EDGES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlavaOnevisionConfig(Qwen2Config):
    """The text's fields, flat, and those of what makes features of pictures and videos."""

    vision: SiglipConfig
    image_token: int
    """The token that stands for one feature of a picture in a prompt."""
    video_token: int
    pinpoints: tuple[Size, ...]
    """Heights and widths in pixels of which a picture's larger version has one."""
    max_squares: int
    """A grid of clearly more features than so many squares have is scaled down to about that."""
    projector_activation: str
    projector_bias: bool

    @property
    def most_tiles(self) -> int:
        """Of a picture: the squares of the largest grid, and the whole."""
        return squares.most_tiles(self.pinpoints, self.vision.image_size)

    @classmethod
    def _fields(cls, hf: hf_config.HfConfig, max_model_len: int | None) -> dict[str, Any]:
        text = _text_config(hf)
        fields = super()._fields(text, max_model_len)
        _require_only(hf)
        layer = hf.get("vision_feature_layer")
        vision = hf_config.part(hf, "vision_config", _SO400M)
        config = SiglipConfig.from_hf(vision, -1 if layer is None else layer)
        activation = hf_config.text(hf, "projector_hidden_act", "gelu")
        return fields | {
            "vision": config,
            "image_token": hf_config.token(hf, "image", 151646, fields["vocab_size"]),
            "video_token": hf_config.token(hf, "video", 151647, fields["vocab_size"]),
            "pinpoints": squares.pinpoints(hf, config.image_size, _PINPOINTS),
            "max_squares": _max_squares(hf),
            "projector_activation": check_activation(activation),
            "projector_bias": hf_config.flag(hf, "multimodal_projector_bias", True),
        }


def _text_config(hf: hf_config.HfConfig) -> dict[str, Any]:
    text = hf_config.part_of_kind(
        hf, "text_config", "qwen2", "a LlavaOnevisionForConditionalGeneration"
    )
    tied = {"tie_word_embeddings": hf_config.tied(hf, text)}
    return {**qwen2.DEFAULTS, **text, "architectures": hf.get("architectures"), **tied}


def _require_only(hf: hf_config.HfConfig) -> None:
    strategy = hf_config.text(hf, "vision_feature_select_strategy", "full")
    if strategy != "full":
        raise UnsupportedModelError(
            f"The field 'vision_feature_select_strategy' in the model's config.json is "
            f"{strategy!r}; only 'full' is implemented, because SigLIP has no class token to leave "
            "out. Correct the file."
        )
    if not hf_config.flag(hf, "use_image_newline_parameter", True):
        raise UnsupportedModelError(
            "The field 'use_image_newline_parameter' in the model's config.json is False; only "
            "True is implemented. Use a model that has the tensor image_newline."
        )


def _max_squares(hf: hf_config.HfConfig) -> int:
    given = hf_config.text(hf, "vision_aspect_ratio", "anyres_max_9")
    if not (found := re.fullmatch(r"anyres_max_([1-9]\d*)", given)):
        raise UnsupportedModelError(
            f"The field 'vision_aspect_ratio' in the model's config.json is {given!r}; only "
            "'anyres_max_N' with a number N is implemented. Use a model such as "
            "llava-onevision-qwen2-7b-ov-hf."
        )
    return int(found[1])


class LlavaOnevision(Qwen2):
    """`LlavaOnevisionForConditionalGeneration` with Qwen 2 as its text model."""

    config_class: ClassVar[type[LlamaConfig]] = LlavaOnevisionConfig
    towers: ClassVar[tuple[str, ...]] = ("vision", "projector", "newline")
    """Top-level attributes that only `encode` uses."""

    def __init__(self, config: LlavaOnevisionConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        super().__init__(config, dtype=dtype, rngs=rngs)
        self.vision = SiglipTower(config.vision, dtype=dtype, rngs=rngs)
        self.projector = Projector(
            config.vision.feature_size,
            config.hidden_size,
            config.projector_activation,
            bias=config.projector_bias,
            dtype=dtype,
            rngs=rngs,
        )
        self.newline = weight((config.hidden_size,), ("embed",), dtype=dtype, rngs=rngs)

    def encode(self, inputs: Mapping[str, Array]) -> Float[Array, "F E"]:
        """Features of all pictures, or of all frames, of one run of the tower, in their order.

        Args:
            inputs: as `TileEncoder.inputs` or `VideoEncoder.inputs` makes them.
        """
        rows = self.projector(self.vision(inputs["pixels"]))
        return ended_blend(rows, self.newline[...], inputs)

    @classmethod
    def encoders(cls, config: LlavaOnevisionConfig) -> "dict[str, TileEncoder | VideoEncoder]":
        """How the host prepares what `encode` takes, by kind of media."""
        side, along = config.vision.image_size, config.vision.along
        return {
            "image": TileEncoder(side, along, config.most_tiles),
            "video": VideoEncoder(side, along),
        }

    @classmethod
    def checkpoint_map(cls, config: LlamaConfig) -> CheckpointMap:
        """As Qwen 2's, whose names the tensors of the text have; `canonical` leads to them."""
        assert isinstance(config, LlavaOnevisionConfig)
        text = super().checkpoint_map(config)
        pieces = [*text.pieces, *siglip.pieces(config.vision, "vision_tower", "vision")]
        pieces += projector.pieces(config.projector_bias)
        pieces.append(Piece("image_newline", "newline"))
        ignored = text.ignored + siglip.ignored(config.vision, "vision_tower")
        return CheckpointMap(tuple(pieces), ignored, canonical)


def canonical(name: str) -> str:
    """The name in `LlavaOnevision.checkpoint_map` of a tensor under any it was published under."""
    return canonical_name(llava.canonical(name))


class VideoLike(SquaresLike, Protocol):
    """Frames that follow each other."""

    @property
    def ends(self) -> bool:
        """Whether the last is its video's last."""
        ...


@dataclasses.dataclass(frozen=True)
class Frame:
    """A frame of a video, which may be encoded apart."""

    pixels: np.ndarray
    """Float32 [1, 3, side, side]."""
    ends: bool


@dataclasses.dataclass(frozen=True)
class VideoEncoder(BlendEncoder[VideoLike]):
    """The squares of a video are its frames, each of which may be encoded apart."""

    @property
    def _half(self) -> int:
        """Features along an edge of a frame."""
        return -(-self.along // 2)

    def parts(self, video: VideoLike) -> list[Frame]:
        """What is encoded apart."""
        last = len(video.pixels) - 1
        return [Frame(video.pixels[i : i + 1], video.ends and i == last) for i in range(last + 1)]

    def size_for(self, tokens: int) -> int:
        """The smallest size that takes whatever frames have together `tokens` features."""
        return max(tokens // self._half**2, self.least)

    def num_rows(self, size: int) -> int:
        """F: rows that `encode` gives for `size`, enough if each frame is its video's last."""
        return size * (self._half**2 + 1)

    def num_tokens(self, video: VideoLike) -> int:
        """Rows of frames; those of others follow, padding last."""
        return len(video.pixels) * self._half**2 + video.ends

    def _blend(self, medium: VideoLike, first: int, end: int) -> Blend:
        """Frame by frame."""
        along = self.along
        starts = range(first, first + len(medium.pixels) * along**2, along**2)
        frame = np.arange(along**2).reshape(along, along)
        parts = [Blend.scaled(frame + start, self._half, self._half) for start in starts]
        if medium.ends:
            parts.append(Blend.scaled(np.zeros((1, 0), int), 1, 0).ended(end))
        return Blend.joined(parts)
