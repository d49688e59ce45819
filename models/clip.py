"""The vision tower of CLIP (arXiv:2103.00020), as LLaVA and Phi-3.5-vision use it."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..errors import ModelConfigError, UnsupportedModelError
from . import hf_config
from .attention import attend_batch
from .checkpoint_map import Piece, with_bias
from .functional import run_layer
from .layers import ACTIVATIONS, LayerNorm, Linear, check_activation, matmul, weight
from .llama import qkv_indices

CHANNELS = 3
VIT_L_14_336: Mapping[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
"""`vision_config` of openai/clip-vit-large-patch14-336, where it is not the default."""
_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "num_channels": CHANNELS,
}


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """What the tower depends on; hashable."""

    hidden_size: int
    intermediate_size: int
    num_heads: int
    image_size: int
    """Pixels along an edge of the square picture."""
    patch_size: int
    """Pixels along an edge of a square patch."""
    activation: str
    norm_eps: float
    feature_layers: tuple[int, ...]
    """The hidden states that are wanted: 0 is the input of the first layer, n the output of n
    layers."""

    @classmethod
    def from_hf(cls, hf: hf_config.HfConfig, feature_layer: int | Sequence[int] = -2) -> Self:
        """From the dict `vision_config` of `config.json`; a field it lacks is as in CLIP ViT-B/32.

        Args:
            feature_layer: one or several hidden states, -1 for the output of the last layer.

        Raises:
            ModelConfigError: a field is malformed, or there is no such hidden state.
            UnsupportedModelError: the tower is not that of CLIP, or the activation is unknown.
        """
        kind = hf_config.text(hf, "model_type", "clip_vision_model")
        if kind != "clip_vision_model":
            raise UnsupportedModelError(
                f"The vision_config in the model's config.json has the model_type {kind!r}; only "
                "'clip_vision_model' is supported. Use a model with a vision tower of CLIP."
            )
        hf = {**_DEFAULTS, **{name: value for name, value in hf.items() if value is not None}}
        hf_config.check_divides(hf, "num_attention_heads", "hidden_size")
        hf_config.check_divides(hf, "patch_size", "image_size")
        if (channels := hf_config.required_count(hf, "num_channels")) != CHANNELS:
            raise UnsupportedModelError(
                f"The vision_config in the model's config.json has num_channels {channels}; only "
                f"{CHANNELS} are supported. Use a model that takes red, green and blue."
            )
        layers = hf_config.required_count(hf, "num_hidden_layers")
        return cls(
            hidden_size=hf["hidden_size"],
            intermediate_size=hf_config.required_count(hf, "intermediate_size"),
            num_heads=hf["num_attention_heads"],
            image_size=hf["image_size"],
            patch_size=hf["patch_size"],
            activation=check_activation(hf_config.text(hf, "hidden_act", "quick_gelu")),
            norm_eps=hf_config.number(hf, "layer_norm_eps", 1e-5),
            feature_layers=_feature_layers(feature_layer, layers),
        )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def along(self) -> int:
        """Patches along an edge."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Of one picture."""
        return self.along**2

    @property
    def num_layers(self) -> int:
        """Those that the wanted hidden states need; a checkpoint may have more."""
        return max(self.feature_layers)

    @property
    def feature_size(self) -> int:
        """Width of the wanted hidden states, side by side."""
        return self.hidden_size * len(self.feature_layers)


def _feature_layers(given: int | Sequence[int], layers: int) -> tuple[int, ...]:
    """Indices from 0."""
    wanted = [given] if isinstance(given, int) else given
    allowed = range(-layers - 1, layers + 1)
    listed = isinstance(wanted, list | tuple) and len(wanted) > 0
    if not listed or any(type(i) is not int or i not in allowed for i in wanted):
        raise ModelConfigError(
            f"The field 'vision_feature_layer' in the model's config.json is {given!r}; it must be "
            f"an integer from {allowed[0]} to {allowed[-1]}, or a list of them, because the vision "
            f"tower has {layers} layers. Correct the file."
        )
    return tuple(i % (layers + 1) for i in wanted)


class ClipAttention(nnx.Module):
    """Every patch of a picture attends to all of them; Q, K and V come from one fused weight."""

    def __init__(self, config: ClipConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        shape = (config.num_heads, 3, config.head_dim)
        axes = ("vision_heads", "group", "head_dim")
        size = config.hidden_size
        make = {"dtype": dtype, "rngs": rngs}
        self.qkv = weight((*shape, size), (*axes, "vision_embed"), **make)
        self.qkv_bias = weight(shape, axes, init="zeros", **make)
        self.out = Linear(size, size, ("vision_embed", "vision_heads"), bias=True, **make)
        self.scale = config.head_dim**-0.5

    @jax.named_scope("attention")
    def __call__(self, x: Float[Array, "N S E"]) -> Float[Array, "N S E"]:
        w = self.qkv[...]
        qkv = matmul(x, w.reshape(-1, w.shape[-1])).reshape(*x.shape[:2], *w.shape[:-1])
        qkv = qkv + self.qkv_bias[...][None, None]
        q, k, v = qkv[:, :, :, 0], qkv[:, :, :, 1], qkv[:, :, :, 2]
        whole = jnp.full(x.shape[:1], x.shape[1], jnp.int32)
        y = attend_batch(q, k, v, whole, scale=self.scale)
        return self.out(y.reshape(*x.shape[:-1], -1))


class ClipLayer(nnx.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: ClipConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        size, inner = config.hidden_size, config.intermediate_size
        make = {"dtype": dtype, "rngs": rngs}
        self.attention_norm = LayerNorm(size, config.norm_eps, affine=True, **make)
        self.attention = ClipAttention(config, **make)
        self.mlp_norm = LayerNorm(size, config.norm_eps, affine=True, **make)
        self.up = Linear(size, inner, ("mlp", "vision_embed"), bias=True, **make)
        self.down = Linear(inner, size, ("vision_embed", "mlp"), bias=True, **make)
        self.activation = config.activation

    def __call__(self, x: Float[Array, "N S E"]) -> Float[Array, "N S E"]:
        x = x + self.attention(self.attention_norm(x))
        with jax.named_scope("mlp"):
            return x + self.down(ACTIVATIONS[self.activation](self.up(self.mlp_norm(x))))


class ClipTower(nnx.Module):
    """As many layers as the wanted hidden states need; no pooling and no last norm."""

    def __init__(self, config: ClipConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        size, values = config.hidden_size, CHANNELS * config.patch_size**2
        make = {"dtype": dtype, "rngs": rngs}
        self.config = config
        self.patches = Linear(values, size, ("vision_embed", "patch"), **make)
        self.class_token = weight((size,), ("vision_embed",), **make)
        shape = (1 + config.num_patches, size)
        self.positions = weight(shape, ("vision_position", "vision_embed"), **make)
        self.norm = LayerNorm(size, config.norm_eps, affine=True, **make)
        self.layers = nnx.List([ClipLayer(config, **make) for _ in range(config.num_layers)])

    @jax.named_scope("vision")
    def __call__(self, pixels: Float[Array, "N 3 H W"]) -> Float[Array, "N 1+P feature_size"]:
        """The wanted hidden states side by side: of the class token, then of the P patches, row by
        row of the picture. Pictures do not see each other.

        Args:
            pixels: normalized; H and W are the config's `image_size`.
        """
        x = self.patches(flat_patches(pixels, self.config.patch_size))
        first = jnp.broadcast_to(self.class_token[...], (x.shape[0], 1, x.shape[-1]))
        x = jnp.concatenate([first, x], axis=1) + self.positions[...][None]
        states = [self.norm(x)]
        for layer in self.layers:
            states.append(run_layer(layer, states[-1]))
        return jnp.concatenate([states[i] for i in self.config.feature_layers], axis=-1)


def flat_patches(pixels: Float[Array, "N C H W"], size: int) -> Float[Array, "N P C*size*size"]:
    """The values of each patch, by channel, then by row; patches row by row."""
    count, channels, height, width = pixels.shape
    x = pixels.reshape(count, channels, height // size, size, width // size, size)
    return x.transpose(0, 2, 4, 1, 3, 5).reshape(count, -1, channels * size * size)


def pieces(config: ClipConfig, source: str, target: str) -> Iterator[Piece]:
    """Which tensors fill the tower.

    Args:
        source: names of tensors before `.embeddings` and `.encoder`.
        target: the dotted path of the tower in the model.
    """
    embeddings = f"{source}.embeddings"
    yield Piece(f"{embeddings}.patch_embedding.weight", f"{target}.patches.weight")
    yield Piece(f"{embeddings}.class_embedding", f"{target}.class_token")
    yield Piece(f"{embeddings}.position_embedding.weight", f"{target}.positions")
    modules = {f"{source}.pre_layrnorm": f"{target}.norm"}  # so misspelt in every checkpoint
    for i in range(config.num_layers):
        layer, place = f"{source}.encoder.layers.{i}", f"{target}.layers.{i}"
        modules |= {f"{layer}.{name}": f"{place}.{path}" for name, path in _LAYER.items()}
        for name, index in qkv_indices(1):
            tensor, param = f"{layer}.self_attn.{name}_proj", f"{place}.attention.qkv"
            yield Piece(f"{tensor}.weight", param, index)
            yield Piece(f"{tensor}.bias", f"{param}_bias", index)
    for tensor, param in modules.items():
        yield from with_bias(tensor, param)


_LAYER = {
    "layer_norm1": "attention_norm",
    "self_attn.out_proj": "attention.out",
    "layer_norm2": "mlp_norm",
    "mlp.fc1": "up",
    "mlp.fc2": "down",
}
"""Modules with weight and bias, by their names in checkpoints."""


def ignored(config: ClipConfig, source: str) -> tuple[str, ...]:
    """Regular expressions of tensors that `pieces` leaves out: later layers and the pooling."""
    start = source.replace(".", r"\.")
    layers = "|".join(map(str, range(config.num_layers)))
    later = rf"(?!(?:{layers})\.)\d+" if layers else r"\d+"
    return (
        rf"{start}\.embeddings\.position_ids",
        rf"{start}\.post_layernorm\.(weight|bias)",
        rf"{start}\.encoder\.layers\.{later}\..+",
    )
