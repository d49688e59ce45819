"""The vision tower of SigLIP (arXiv:2303.15343): CLIP's layers over patches alone.

It has no class token and no norm before the layers; the pooling of its outputs is not built.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..errors import UnsupportedModelError
from . import clip, hf_config
from .checkpoint_map import Piece
from .clip import CHANNELS, ClipConfig, ClipLayer, flat_patches
from .functional import run_layer
from .layers import Linear, weight

_DEFAULTS: Mapping[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}


@dataclasses.dataclass(frozen=True)
class SiglipConfig(ClipConfig):
    """What the tower depends on; hashable. What an edge has beyond whole patches is not seen."""

    @classmethod
    def from_hf(cls, hf: hf_config.HfConfig, feature_layer: int | Sequence[int] = -1) -> Self:
        """From the dict `vision_config` of `config.json`; a field it lacks is as in SigLIP's base.

        Args:
            feature_layer: one or several hidden states, -1 for the output of the last layer, which
                no norm follows.

        Raises:
            ModelConfigError: a field is malformed, or there is no such hidden state.
            UnsupportedModelError: the tower is not that of SigLIP, or the activation is unknown.
        """
        kind = hf_config.text(hf, "model_type", "siglip_vision_model")
        if kind != "siglip_vision_model":
            raise UnsupportedModelError(
                f"The vision_config in the model's config.json has the model_type {kind!r}; only "
                "'siglip_vision_model' is supported. Use a model with a vision tower of SigLIP."
            )
        given = {name: value for name, value in hf.items() if value is not None}
        fields: dict[str, Any] = {**_DEFAULTS, **given, "model_type": None}
        edge = hf_config.required_count(fields, "image_size")
        patch = hf_config.required_count(fields, "patch_size")
        fields["image_size"] = max(edge // patch, 1) * patch
        config = super().from_hf(fields, feature_layer)
        return dataclasses.replace(config, image_size=edge)


class SiglipTower(nnx.Module):
    """As many layers as the wanted hidden states need."""

    def __init__(self, config: SiglipConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        size, values = config.hidden_size, CHANNELS * config.patch_size**2
        make = {"dtype": dtype, "rngs": rngs}
        self.config = config
        self.patches = Linear(values, size, ("vision_embed", "patch"), bias=True, **make)
        shape = (config.num_patches, size)
        self.positions = weight(shape, ("vision_position", "vision_embed"), **make)
        self.layers = nnx.List([ClipLayer(config, **make) for _ in range(config.num_layers)])

    @jax.named_scope("vision")
    def __call__(self, pixels: Float[Array, "N 3 H W"]) -> Float[Array, "N P feature_size"]:
        """The wanted hidden states of the P patches side by side, row by row of the picture.
        Pictures do not see each other.

        Args:
            pixels: normalized; H and W are the config's `image_size`.
        """
        seen = self.config.along * self.config.patch_size
        x = self.patches(flat_patches(pixels[..., :seen, :seen], self.config.patch_size))
        states = [x + self.positions[...][None]]
        for layer in self.layers:
            states.append(run_layer(layer, states[-1]))
        return jnp.concatenate([states[i] for i in self.config.feature_layers], axis=-1)


def pieces(config: SiglipConfig, source: str, target: str) -> Iterator[Piece]:
    """Which tensors fill the tower, as `clip.pieces`."""
    missing = {f"{target}.class_token", f"{target}.norm.weight", f"{target}.norm.bias"}
    for piece in clip.pieces(config, source, target):
        if piece.param not in missing:
            yield piece
    yield Piece(f"{source}.embeddings.patch_embedding.bias", f"{target}.patches.bias")


def ignored(config: SiglipConfig, source: str) -> tuple[str, ...]:
    """Regular expressions of tensors that `pieces` leaves out: later layers and the pooling."""
    start = source.replace(".", r"\.")
    return (*clip.ignored(config, source), rf"{start}\.head\..+")
