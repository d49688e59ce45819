"""The vision tower of Qwen2-VL (arXiv:2409.12191): pictures of their own size, as patches.

Letters beside those of the language model: N patches, P values of a patch, C width of the tower,
H heads, M patches that are merged into one feature. All pictures of a run are one row of patches;
a patch attends to those of its own segment, which is one picture, or one frame of a video.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ..errors import ModelConfigError, UnsupportedModelError
from ..pallas_kernels.block_reference import rotate
from ..pallas_kernels.range_reference import BLOCK
from . import hf_config
from .attention import Rotary, attend_segments
from .checkpoint_map import Piece, with_bias
from .functional import run_layer
from .layers import ACTIVATIONS, LayerNorm, Linear, check_activation, matmul, weight

_NORM_EPS = 1e-6
_DEFAULTS: dict[str, Any] = {
    "depth": 32,
    "embed_dim": 1280,
    "hidden_size": 3584,
    "mlp_ratio": 4,
    "num_heads": 16,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
"""What `transformers` takes where a file does not say."""


@dataclasses.dataclass(frozen=True)
class Qwen2VisionConfig:
    """Counts, sizes and options of the tower; hashable."""

    depth: int
    """Transformer layers."""
    size: int
    """Width of the tower."""
    num_heads: int
    mlp_size: int
    out_size: int
    """Width of the features, the language model's."""
    channels: int
    frames: int
    """Pictures in a row that one patch spans."""
    patch: int
    """Pixels along an edge of a patch."""
    merge: int
    """Patches along an edge of the square that becomes one feature."""
    activation: str
    rope_theta: float

    @classmethod
    def from_hf(cls, hf: hf_config.HfConfig, hidden_size: int) -> Self:
        """From `vision_config`, of a language model so wide.

        Raises:
            ModelConfigError: a field is malformed, or two do not fit each other.
            UnsupportedModelError: the activation is unknown, or so many patches cannot be merged.
        """
        hf = {**_DEFAULTS, **hf}
        count = hf_config.required_count
        hf_config.check_divides(hf, "num_heads", "embed_dim")
        _check_heads(hf)
        _check_width(hf, hidden_size)
        return cls(
            depth=count(hf, "depth"),
            size=count(hf, "embed_dim"),
            num_heads=count(hf, "num_heads"),
            mlp_size=int(hf["embed_dim"] * hf_config.number(hf, "mlp_ratio", 4.0)),
            out_size=hidden_size,
            channels=hf_config.optional_count(
                hf, "in_channels", hf_config.optional_count(hf, "in_chans", 3)
            ),
            frames=count(hf, "temporal_patch_size"),
            patch=count(hf, "patch_size"),
            merge=_merge(hf),
            activation=check_activation(hf_config.text(hf, "hidden_act", "quick_gelu")),
            rope_theta=hf_config.number(hf.get("rope_parameters") or {}, "rope_theta", 10000.0),
        )

    @property
    def patch_values(self) -> int:
        """Values of a patch: channels, frames, rows, columns."""
        return self.channels * self.frames * self.patch**2

    @property
    def merged(self) -> int:
        """Patches that become one feature."""
        return self.merge**2

    @property
    def head_dim(self) -> int:
        return self.size // self.num_heads


def _check_heads(hf: hf_config.HfConfig) -> None:
    if (hf["embed_dim"] // hf["num_heads"]) % 4:
        raise ModelConfigError(
            f"In vision_config of the model's config.json 'embed_dim' is {hf['embed_dim']} and "
            f"'num_heads' {hf['num_heads']}; their ratio must be a multiple of 4, for rotary "
            "positions of rows and columns. Correct the file."
        )


def _check_width(hf: hf_config.HfConfig, hidden_size: int) -> None:
    if (width := hf_config.required_count(hf, "hidden_size")) != hidden_size:
        raise ModelConfigError(
            f"In the model's config.json 'hidden_size' of vision_config is {width}; it must be "
            f"{hidden_size}, that of the language model. Correct the file."
        )


def _merge(hf: hf_config.HfConfig) -> int:
    merge = hf_config.required_count(hf, "spatial_merge_size")
    if BLOCK % merge**2:
        raise UnsupportedModelError(
            f"The model's config.json has 'spatial_merge_size' {merge} in vision_config; only 1, "
            "2, 4, 8 and 16 are supported. Use a model that has one of them."
        )
    return merge


class Qwen2VisionAttention(nnx.Module):
    """Full attention within segments; Q, K and V come from one fused weight."""

    def __init__(self, config: Qwen2VisionConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        shape, axes = (3, config.num_heads, config.head_dim), ("qkv", "vision_heads", "head_dim")
        make = {"dtype": dtype, "rngs": rngs}
        self.qkv = weight((*shape, config.size), (*axes, "vision_embed"), **make)
        self.qkv_bias = weight(shape, axes, init="zeros", **make)
        axes = ("vision_embed", "vision_heads")
        self.out = Linear(config.size, config.size, axes, bias=True, **make)
        self.scale = config.head_dim**-0.5

    @jax.named_scope("vision_attention")
    def __call__(
        self, x: Float[Array, "N C"], rotary: Rotary, segments: Int[Array, " N"]
    ) -> Float[Array, "N C"]:
        w = self.qkv[...]
        qkv = matmul(x, w.reshape(-1, w.shape[-1])).reshape(-1, *w.shape[:-1])
        qkv = qkv + self.qkv_bias[...][None]
        q, k = rotate(qkv[:, 0], *rotary), rotate(qkv[:, 1], *rotary)
        y = attend_segments(q, k, qkv[:, 2], segments, scale=self.scale)
        return self.out(y.reshape(*x.shape[:-1], -1))


class Qwen2VisionLayer(nnx.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: Qwen2VisionConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        make = {"dtype": dtype, "rngs": rngs}
        size, mlp_size = config.size, config.mlp_size
        self.attention_norm = LayerNorm(size, _NORM_EPS, affine=True, **make)
        self.attention = Qwen2VisionAttention(config, **make)
        self.mlp_norm = LayerNorm(size, _NORM_EPS, affine=True, **make)
        self.up = Linear(size, mlp_size, ("vision_mlp", "vision_embed"), bias=True, **make)
        self.down = Linear(mlp_size, size, ("vision_embed", "vision_mlp"), bias=True, **make)
        self.activation = config.activation

    def __call__(
        self, x: Float[Array, "N C"], rotary: Rotary, segments: Int[Array, " N"]
    ) -> Float[Array, "N C"]:
        x = x + self.attention(self.attention_norm(x), rotary, segments)
        return x + self.down(ACTIVATIONS[self.activation](self.up(self.mlp_norm(x))))


class Qwen2VisionMerger(nnx.Module):
    """Neighbouring patches to one feature of the language model's width."""

    def __init__(self, config: Qwen2VisionConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        make = {"dtype": dtype, "rngs": rngs}
        self.size = config.merged * config.size
        self.norm = LayerNorm(config.size, _NORM_EPS, affine=True, **make)
        self.up = Linear(self.size, self.size, ("vision_mlp", "vision_embed"), bias=True, **make)
        self.down = Linear(self.size, config.out_size, ("embed", "vision_mlp"), bias=True, **make)

    def __call__(self, x: Float[Array, "N C"]) -> Float[Array, "N/M E"]:
        x = self.norm(x).reshape(-1, self.size)
        return self.down(ACTIVATIONS["gelu"](self.up(x)))


class Qwen2VisionTower(nnx.Module):
    """Patches to features. Patches that become one feature follow one another."""

    def __init__(self, config: Qwen2VisionConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        make = {"dtype": dtype, "rngs": rngs}
        self.config = config
        axes = ("vision_embed", "patch")
        self.patch_embed = Linear(config.patch_values, config.size, axes, **make)
        self.layers = nnx.List([Qwen2VisionLayer(config, **make) for _ in range(config.depth)])
        self.merger = Qwen2VisionMerger(config, **make)

    @jax.named_scope("vision")
    def __call__(
        self,
        patches: Float[Array, "N P"],
        positions: Int[Array, "N 2"],
        segments: Int[Array, " N"],
    ) -> Float[Array, "N/M E"]:
        """Features of N patches, a multiple of BLOCK.

        Args:
            patches: normalized pixels; channels, frames, rows, columns.
            positions: row and column of each patch in its picture.
            segments: patches see those of the same number; 0 is padding.
        """
        x, rotary = self.patch_embed(patches), self._rotary(positions)
        for layer in self.layers:
            x = run_layer(layer, x, rotary, segments)
        return self.merger(x)

    def _rotary(self, positions: Int[Array, "N 2"]) -> Rotary:
        """Half of the pairs of a head rotate by the row and half by the column."""
        quarter = self.config.head_dim // 4
        inv_freq = self.config.rope_theta ** (-np.arange(quarter) / quarter)
        frequencies = jnp.asarray(inv_freq, jnp.float32)
        angles = positions.astype(jnp.float32)[:, :, None] * frequencies[None, None, :]
        angles = angles.reshape(-1, 2 * quarter)
        return jnp.cos(angles), jnp.sin(angles)


def tower_pieces(config: Qwen2VisionConfig, source: str, target: str) -> Iterator[Piece]:
    """How the tensors below `source` fill the parameters below `target`."""
    yield Piece(f"{source}.patch_embed.proj.weight", f"{target}.patch_embed.weight")
    yield from with_bias(f"{source}.merger.ln_q", f"{target}.merger.norm")
    yield from with_bias(f"{source}.merger.mlp.0", f"{target}.merger.up")
    yield from with_bias(f"{source}.merger.mlp.2", f"{target}.merger.down")
    for i in range(config.depth):
        block, layer = f"{source}.blocks.{i}", f"{target}.layers.{i}"
        yield from with_bias(f"{block}.norm1", f"{layer}.attention_norm")
        yield Piece(f"{block}.attn.qkv.weight", f"{layer}.attention.qkv")
        yield Piece(f"{block}.attn.qkv.bias", f"{layer}.attention.qkv_bias")
        yield from with_bias(f"{block}.attn.proj", f"{layer}.attention.out")
        yield from with_bias(f"{block}.norm2", f"{layer}.mlp_norm")
        yield from with_bias(f"{block}.mlp.fc1", f"{layer}.up")
        yield from with_bias(f"{block}.mlp.fc2", f"{layer}.down")
