"""LLaVA-OneVision (arXiv:2408.03326): pictures in tiles, and videos, through SigLIP into Qwen 2.

The tower sees the whole of a picture as one square, and a grid of squares of a larger version. Of
the grid, what was padded is cut off, what is still too large is scaled down, and a learned feature
ends each row. Features of a video's frames are scaled to half the edge, and one such feature ends
the video. So every feature is a sum of at most four rows of the projector, which the host names.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..errors import ModelConfigError, UnsupportedModelError
from . import hf_config, projector, qwen2, siglip
from .checkpoint_map import CheckpointMap, Piece, renamed
from .layers import check_activation, weight
from .llama import LlamaConfig, canonical_name
from .projector import Projector
from .qwen2 import Qwen2, Qwen2Config
from .siglip import SiglipConfig, SiglipTower
from .squares import Blend, SquareEncoder, SquaresLike, blended

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
    pinpoints: tuple[tuple[int, int], ...]
    """Heights and widths in pixels of which a picture's larger version has one."""
    max_squares: int
    """A grid of clearly more features than so many squares have is scaled down to about that."""
    projector_activation: str
    projector_bias: bool

    @property
    def most_tiles(self) -> int:
        """Of a picture: the squares of the largest grid, and the whole."""
        return 1 + max(math.prod(p) for p in self.pinpoints) // self.vision.image_size**2

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
            "pinpoints": _pinpoints(hf, config.image_size),
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


def _pinpoints(hf: hf_config.HfConfig, side: int) -> tuple[tuple[int, int], ...]:
    given = hf.get("image_grid_pinpoints")
    given = _PINPOINTS if given is None else given
    whole = isinstance(given, list | tuple) and len(given) > 0
    if not whole or not all(_is_whole(size, side) for size in given):
        raise ModelConfigError(
            f"The field 'image_grid_pinpoints' in the model's config.json is {given!r}; it must be "
            f"a list of heights and widths in pixels that are multiples of {side}, the image_size "
            "of vision_config. Correct the file."
        )
    return tuple((height, width) for height, width in given)


def _is_whole(size: Any, side: int) -> bool:
    if not isinstance(size, list | tuple) or len(size) != 2:
        return False
    return all(type(edge) is int and edge > 0 and edge % side == 0 for edge in size)


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
            inputs: as `PictureEncoder.inputs` or `VideoEncoder.inputs` makes them.
        """
        rows = self.projector(self.vision(inputs["pixels"]))
        rows = rows.reshape(-1, rows.shape[-1])
        rows = jnp.concatenate([rows, self.newline[...][None]])
        return blended(rows, inputs["index"], inputs["weight"])

    @classmethod
    def encoders(cls, config: LlavaOnevisionConfig) -> "dict[str, PictureEncoder | VideoEncoder]":
        """How the host prepares what `encode` takes, by kind of media."""
        side, along = config.vision.image_size, config.vision.along
        return {
            "image": PictureEncoder(side, along, config.most_tiles),
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


_NAMES = (
    (r"(model\.)?image_newline", "image_newline"),
    (r"(model\.)?vision_tower\.(vision_model\.)?", "vision_tower."),
    (r"(model\.)?multi_modal_projector\.", "multi_modal_projector."),
    (r"language_model\.lm_head\.", "lm_head."),
    (r"(model\.)?language_model\.(model\.)?", "model."),
)
"""How names begin in checkpoints of all versions of transformers, and in `checkpoint_map`."""


def canonical(name: str) -> str:
    """The name in `LlavaOnevision.checkpoint_map` of a tensor under any it was published under."""
    return canonical_name(renamed(name, _NAMES))


class PictureLike(SquaresLike, Protocol):
    """A picture as tiles: the whole first, then a grid row by row."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tiles; n is 1 + their product."""
        ...

    @property
    def kept(self) -> tuple[int, int]:
        """Height and width in features of the grid's middle, around which is padding."""
        ...

    @property
    def shown(self) -> tuple[int, int]:
        """Height and width that it is scaled to."""
        ...


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
class PictureEncoder(SquareEncoder[PictureLike]):
    """The squares of a picture are its tiles, which are encoded together."""

    side: int
    along: int
    most_tiles: int
    """Of one picture."""

    def size_for(self, tokens: int) -> int:
        """Tiles that take any one picture, and pictures of together `tokens` features that have
        as many as the tower gives of their tiles."""
        return max(tokens // self.along**2, self.most_tiles, self.least)

    def num_rows(self, size: int) -> int:
        """F: rows that `encode` gives for `size`, enough whatever the pictures.

        The most ends of lines have grids of one column: `along` for each tile.
        """
        return size * self.along * (self.along + 1)

    def num_tokens(self, picture: PictureLike) -> int:
        """Rows of a picture; pictures' rows stand one after the other, padding last."""
        height, width = picture.shown
        return self.along**2 + height * (width + 1)

    def _blend(self, medium: PictureLike, first: int, end: int) -> Blend:
        """The whole, then what is shown of the grid, line by line."""
        along, count = self.along, self.along**2
        rows, columns = medium.grid
        whole = np.arange(first, first + count).reshape(along, along)
        tiles = np.arange(rows * columns * count) + first + count
        grid = tiles.reshape(rows, columns, along, along).swapaxes(1, 2)
        kept = _middle(grid.reshape(rows * along, columns * along), *medium.kept)
        parts = Blend.scaled(whole, along, along), Blend.scaled(kept, *medium.shown).ended(end)
        return Blend.joined(parts)


def _middle(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    top, left = (grid.shape[0] - height) // 2, (grid.shape[1] - width) // 2
    return grid[top : top + height, left : left + width]


@dataclasses.dataclass(frozen=True)
class VideoEncoder(SquareEncoder[VideoLike]):
    """The squares of a video are its frames, each of which may be encoded apart."""

    side: int
    along: int

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
