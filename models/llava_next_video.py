"""LLaVA-NeXT-Video (https://llava-vl.github.io/blog/2024-04-30-llava-next-video/): LLaVA-NeXT, and
videos.

The tower sees each frame of a video as one square, whose features are pooled before the projector.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..errors import ModelConfigError, UnsupportedModelError
from . import hf_config
from .checkpoint_map import CheckpointMap, with_bias
from .clip import flat_patches
from .layers import Linear
from .llama import LlamaConfig
from .llava_next import LlavaNext, LlavaNextConfig
from .squares import SquareEncoder, Squares, SquaresLike

_POOLS = ("average", "max", "conv")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlavaNextVideoConfig(LlavaNextConfig):
    """LLaVA-NeXT's fields, and those of videos."""

    usual_image_token: ClassVar[int] = 32001

    video_token: int
    """The token that stands for one feature of a video in a prompt."""
    pool: str
    """`average` or `max`, or `conv` for a convolution."""
    stride: int
    """Features of the tower along an edge of what is pooled into one."""

    @property
    def frame_along(self) -> int:
        """Features along an edge of a frame; what is left of the tower's is not seen."""
        return self.vision.along // self.stride

    @classmethod
    def _fields(cls, hf: hf_config.HfConfig, max_model_len: int | None) -> dict[str, Any]:
        fields = super()._fields(hf, max_model_len)
        pool = hf_config.text(hf, "spatial_pool_mode", "average")
        stride = hf_config.optional_count(hf, "spatial_pool_stride", 2)
        _check_pool(hf, pool, stride, fields["vision"])
        return fields | {
            "video_token": hf_config.token(hf, "video", 32000, fields["vocab_size"]),
            "pool": pool,
            "stride": stride,
        }


def _check_pool(hf: hf_config.HfConfig, pool: str, stride: int, vision: Any) -> None:
    if pool not in _POOLS:
        raise ModelConfigError(
            f"The field 'spatial_pool_mode' in the model's config.json is {pool!r}; allowed are "
            f"{', '.join(map(repr, _POOLS))}. Correct the file."
        )
    if stride > vision.along:
        raise ModelConfigError(
            f"The field 'spatial_pool_stride' in the model's config.json is {stride}; it may be at "
            f"most {vision.along}, the patches along an edge of what the tower sees. Correct the "
            "file."
        )
    size = vision.hidden_size
    given = (hf_config.optional_count(hf, "spatial_pool_out_channels", size), vision.feature_size)
    if pool == "conv" and given != (size, size):
        raise UnsupportedModelError(
            "The model's config.json asks for the 'spatial_pool_mode' 'conv' with "
            f"{given[0]} channels of {given[1]}; it is only implemented from one hidden state to "
            f"as many channels, {size}. Correct 'spatial_pool_out_channels' and "
            "'vision_feature_layer'."
        )


class LlavaNextVideo(LlavaNext):
    """`LlavaNextVideoForConditionalGeneration` with Llama or Mistral as its text model."""

    config_class: ClassVar[type[LlamaConfig]] = LlavaNextVideoConfig
    towers: ClassVar[tuple[str, ...]] = (*LlavaNext.towers, "resampler")
    """Top-level attributes that only `encode` uses."""

    def __init__(self, config: LlavaNextVideoConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        super().__init__(config, dtype=dtype, rngs=rngs)
        self.resampler = Resampler(config, dtype=dtype, rngs=rngs)

    def encode(self, inputs: Mapping[str, Array]) -> Float[Array, "F E"]:
        """Features of all pictures, or of all frames, of one run of the tower, in their order.

        Args:
            inputs: as `TileEncoder.inputs` or `FrameEncoder.inputs` makes them.
        """
        if "index" in inputs:
            return super().encode(inputs)
        rows = self.projector(self.resampler(self._patches(inputs)))
        return rows.reshape(-1, rows.shape[-1])

    @classmethod
    def encoders(cls, config: LlavaNextConfig) -> dict[str, SquareEncoder[Any]]:
        """How the host prepares what `encode` takes, by kind of media."""
        assert isinstance(config, LlavaNextVideoConfig)
        vision = config.vision
        frames = FrameEncoder(vision.image_size, vision.along, config.frame_along)
        return {**super().encoders(config), "video": frames}

    @classmethod
    def checkpoint_map(cls, config: LlamaConfig) -> CheckpointMap:
        """As LLaVA-NeXT's, with the convolution where there is one."""
        assert isinstance(config, LlavaNextVideoConfig)
        mapping = super().checkpoint_map(config)
        if config.pool != "conv":
            return mapping
        pool = with_bias("vision_resampler.pool", "resampler.pool")
        return dataclasses.replace(mapping, pieces=(*mapping.pieces, *pool))


class Resampler(nnx.Module):
    """Makes one feature of each small square of a tower's, one beside the other."""

    def __init__(self, config: LlavaNextVideoConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.kind, self.stride, self.along = config.pool, config.stride, config.vision.along
        size, make = config.vision.hidden_size, {"bias": True, "dtype": dtype, "rngs": rngs}
        axes = ("vision_embed", "patch")
        convolved = config.pool == "conv"
        self.pool = Linear(size * config.stride**2, size, axes, **make) if convolved else None

    @jax.named_scope("resampler")
    def __call__(self, x: Float[Array, "N P V"]) -> Float[Array, "N Q V"]:
        seen = self.along // self.stride * self.stride
        grid = x.reshape(x.shape[0], self.along, self.along, -1)[:, :seen, :seen]
        parts = flat_patches(grid.transpose(0, 3, 1, 2), self.stride)
        if self.pool is not None:
            return self.pool(parts)
        parts = parts.reshape(*parts.shape[:2], x.shape[-1], self.stride**2)
        return parts.mean(-1) if self.kind == "average" else parts.max(-1)


@dataclasses.dataclass(frozen=True)
class FrameEncoder(SquareEncoder[SquaresLike]):
    """The squares of a video are its frames, each of which may be encoded apart."""

    frame_along: int
    """Features along an edge of a frame."""

    @property
    def _frame_rows(self) -> int:
        return self.frame_along**2

    def parts(self, video: SquaresLike) -> list[Squares]:
        """What is encoded apart."""
        return [Squares(frame[None]) for frame in video.pixels]

    def size_for(self, tokens: int) -> int:
        """The smallest size that takes whatever frames have together `tokens` features."""
        return max(tokens // self._frame_rows, self.least)

    def num_rows(self, size: int) -> int:
        """F: rows that `encode` gives for `size`."""
        return size * self._frame_rows

    def num_tokens(self, video: SquaresLike) -> int:
        """Rows of frames; those of others follow, padding last."""
        return len(video.pixels) * self._frame_rows
