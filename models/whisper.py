"""The audio tower of Whisper (arXiv:2212.04356), as Qwen2-Audio and Ultravox use it."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from . import hf_config
from .attention import attend_batch
from .checkpoint_map import Piece, with_bias
from .functional import run_layer
from .layers import ACTIVATIONS, LayerNorm, Linear, check_activation, matmul, weight
from .llama import qkv_indices

STRIDE = 2
"""Mel frames that become one state."""
_TAPS = 3
"""States that each of the two convolutions sees."""
_MOST_FLOAT16 = 64504
"""A state's largest value in float16, as in `transformers`: a little below what overflows."""


@dataclasses.dataclass(frozen=True)
class WhisperConfig:
    """What the tower depends on; hashable."""

    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_layers: int
    num_mel_bins: int
    max_states: int
    """States of a clip, padding included."""
    activation: str
    pool: int
    """States whose mean goes into the last norm."""

    @classmethod
    def from_hf(cls, hf: hf_config.HfConfig, defaults: Mapping[str, Any], pool: int) -> Self:
        """From `audio_config` of `config.json`.

        Args:
            defaults: for fields that it lacks.
            pool: states whose mean goes into the last norm.

        Raises:
            ModelConfigError: a field is malformed.
            UnsupportedModelError: the activation is unknown.
        """
        hf = {**defaults, **{name: value for name, value in hf.items() if value is not None}}
        hf_config.check_divides(hf, "encoder_attention_heads", "d_model")
        return cls(
            hidden_size=hf["d_model"],
            intermediate_size=hf_config.required_count(hf, "encoder_ffn_dim"),
            num_heads=hf["encoder_attention_heads"],
            num_layers=hf_config.required_count(hf, "encoder_layers"),
            num_mel_bins=hf_config.required_count(hf, "num_mel_bins"),
            max_states=hf_config.required_count(hf, "max_source_positions", least=pool),
            activation=check_activation(hf_config.text(hf, "activation_function", "gelu")),
            pool=pool,
        )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def num_frames(self) -> int:
        """Mel frames of a clip, padding included."""
        return self.max_states * STRIDE

    @property
    def num_rows(self) -> int:
        """Outputs of a clip, padding included."""
        return self.max_states // self.pool

    def states(self, frames: int) -> int:
        """States of a clip of so many mel frames."""
        return -(-frames // STRIDE)

    def rows(self, frames: int) -> int:
        """Outputs of a clip of so many mel frames; states that do not fill one are left out."""
        return self.states(frames) // self.pool


class WhisperAttention(nnx.Module):
    """Every state of a clip attends to the `real` ones, before padding; only keys have no bias."""

    def __init__(self, config: WhisperConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        heads, width, size = config.num_heads, config.head_dim, config.hidden_size
        axes = ("vision_heads", "group", "head_dim")
        make = {"dtype": dtype, "rngs": rngs}
        self.qkv = weight((heads, 3, width, size), (*axes, "vision_embed"), **make)
        bias = {"shape": (heads, width), "axes": (axes[0], axes[2]), "init": "zeros"}
        self.q_bias, self.v_bias = weight(**bias, **make), weight(**bias, **make)
        self.out = Linear(size, size, ("vision_embed", "vision_heads"), bias=True, **make)
        self.scale = width**-0.5

    @jax.named_scope("attention")
    def __call__(self, x: Float[Array, "N S E"], real: Int[Array, " N"]) -> Float[Array, "N S E"]:
        w = self.qkv[...]
        qkv = matmul(x, w.reshape(-1, w.shape[-1])).reshape(*x.shape[:2], *w.shape[:-1])
        q = qkv[:, :, :, 0] + self.q_bias[...][None, None]
        v = qkv[:, :, :, 2] + self.v_bias[...][None, None]
        y = attend_batch(q, qkv[:, :, :, 1], v, real, scale=self.scale)
        return self.out(y.reshape(*x.shape[:-1], -1))


class WhisperLayer(nnx.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: WhisperConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        size, inner = config.hidden_size, config.intermediate_size
        make = {"dtype": dtype, "rngs": rngs}
        self.attention_norm = LayerNorm(size, affine=True, **make)
        self.attention = WhisperAttention(config, **make)
        self.mlp_norm = LayerNorm(size, affine=True, **make)
        self.up = Linear(size, inner, ("mlp", "vision_embed"), bias=True, **make)
        self.down = Linear(inner, size, ("vision_embed", "mlp"), bias=True, **make)
        self.activation = config.activation

    def __call__(self, x: Float[Array, "N S E"], real: Int[Array, " N"]) -> Float[Array, "N S E"]:
        x = x + self.attention(self.attention_norm(x), real)
        with jax.named_scope("mlp"):
            x = x + self.down(ACTIVATIONS[self.activation](self.up(self.mlp_norm(x))))
        return jnp.clip(x, -_MOST_FLOAT16, _MOST_FLOAT16) if x.dtype == jnp.float16 else x


class WhisperTower(nnx.Module):
    """Two convolutions, transformer blocks, the mean of neighbours, and a norm."""

    def __init__(self, config: WhisperConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        size = config.hidden_size
        make = {"dtype": dtype, "rngs": rngs}
        axes = ("vision_embed", "patch")
        self.config = config
        self.conv1 = Linear(config.num_mel_bins * _TAPS, size, axes, bias=True, **make)
        self.conv2 = Linear(size * _TAPS, size, axes, bias=True, **make)
        shape = (config.max_states, size)
        self.positions = weight(shape, ("vision_position", "vision_embed"), **make)
        self.layers = nnx.List([WhisperLayer(config, **make) for _ in range(config.num_layers)])
        self.norm = LayerNorm(size, affine=True, **make)

    @jax.named_scope("audio")
    def __call__(
        self,
        mels: Float[Array, "N M T"],
        frames: Int[Array, " N"],
        ends: Int[Array, " N"] | None = None,
    ) -> Float[Array, "N R E"]:
        """Outputs of each clip, those of padding last and without meaning; R is the config's
        `num_rows`. Clips do not hear each other.

        Args:
            mels: log-mel spectrograms; M and T are the config's `num_mel_bins` and `num_frames`.
            frames: how many of a clip's frames are not padding.
            ends: where a clip ends for the convolutions, at `frames` or after; its mels are zeros
                from there on. None is T.
        """
        x = jax.nn.gelu(self.conv1(windows(mels.swapaxes(1, 2), 1)), approximate=False)
        if ends is not None:
            there = jnp.arange(x.shape[1])[None] < ends[:, None]
            x = jnp.where(there[..., None], x, jnp.zeros_like(x))
        x = jax.nn.gelu(self.conv2(windows(x, STRIDE)), approximate=False)
        x = x + self.positions[...][None]
        real = -(-frames // STRIDE)
        for layer in self.layers:
            x = run_layer(layer, x, real)
        return self.norm(means(x, self.config.pool))


def windows(x: Float[Array, "N S C"], stride: int) -> Float[Array, "N S/stride C*3"]:
    """What a convolution of three taps sees at each of its places, zeros beyond both ends; values
    by channel, then by tap."""
    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
    taps = [padded[:, i : i + x.shape[1] : stride] for i in range(_TAPS)]
    return jnp.stack(taps, axis=-1).reshape(*taps[0].shape[:2], -1)


def means(x: Float[Array, "N S E"], count: int) -> Float[Array, "N S//count E"]:
    """Of `count` neighbours each, summed in float32."""
    whole = x[:, : x.shape[1] // count * count]
    groups = whole.reshape(x.shape[0], -1, count, x.shape[-1])
    return jnp.mean(groups.astype(jnp.float32), axis=2).astype(x.dtype)


def pieces(config: WhisperConfig, source: str, target: str) -> Iterator[Piece]:
    """Which tensors fill the tower.

    Args:
        source: names of tensors before `.conv1` and `.layers`.
        target: the dotted path of the tower in the model.
    """
    yield Piece(f"{source}.embed_positions.weight", f"{target}.positions")
    modules = {f"{source}.layer_norm": f"{target}.norm"}
    modules |= {f"{source}.{name}": f"{target}.{name}" for name in ("conv1", "conv2")}
    for i in range(config.num_layers):
        layer, place = f"{source}.layers.{i}", f"{target}.layers.{i}"
        modules |= {f"{layer}.{name}": f"{place}.{path}" for name, path in _LAYER.items()}
        for name, index in qkv_indices(1):
            yield Piece(f"{layer}.self_attn.{name}_proj.weight", f"{place}.attention.qkv", index)
        for name in ("q", "v"):
            yield Piece(f"{layer}.self_attn.{name}_proj.bias", f"{place}.attention.{name}_bias")
    for tensor, param in modules.items():
        yield from with_bias(tensor, param)


_LAYER = {
    "self_attn_layer_norm": "attention_norm",
    "self_attn.out_proj": "attention.out",
    "final_layer_norm": "mlp_norm",
    "fc1": "up",
    "fc2": "down",
}
"""Modules with weight and bias, by their names in checkpoints."""
