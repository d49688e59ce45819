"""OPT: learned positions, layer norms, ReLU; the 350m variant normalises after each block."""

import dataclasses
from collections.abc import Iterator
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ..pallas_kernels.peer_memory import Mailbox
from . import hf_config
from .attention import LayerCache, attend
from .batch import TokenBatch, adapters_of
from .block import embedded, linear, project, vocabulary
from .checkpoint_map import CheckpointMap, Piece, with_bias
from .functional import run_layers
from .layers import (
    ACTIVATIONS,
    Embedding,
    LayerNorm,
    Linear,
    check_activation,
    weight,
)
from .llama import qkv_indices
from .low_rank import LowRank

_POSITION_OFFSET = 2
"""Rows of the position table before that of position 0."""


@dataclasses.dataclass(frozen=True)
class OPTConfig:
    """What the program depends on: counts, sizes and options; hashable."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    positions: int
    """Rows of the position table, less the offset."""
    max_model_len: int
    embedding_size: int
    """Width of token embeddings and head; projected where it is not `hidden_size`."""
    activation: str
    norm_first: bool
    """Norms before attention and feed-forward, rather than after."""
    final_norm: bool
    norm_affine: bool
    bias: bool
    tie_embeddings: bool

    @property
    def num_kv_heads(self) -> int:
        return self.num_heads

    @property
    def kv_copies(self) -> int:
        """No query head shares its KV head, and devices are no more than those."""
        return 1

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @classmethod
    def from_hf(cls, hf: hf_config.HfConfig, max_model_len: int | None = None) -> Self:
        """From the dict in `config.json`; raises as `LlamaConfig.from_hf`."""
        hf_config.check_divides(hf, "num_attention_heads", "hidden_size")
        hidden_size = hf_config.required_count(hf, "hidden_size")
        positions = hf_config.required_count(hf, "max_position_embeddings")
        norm_first = hf_config.flag(hf, "do_layer_norm_before", True)
        return cls(
            vocab_size=hf_config.required_count(hf, "vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=hf_config.required_count(hf, "ffn_dim"),
            num_layers=hf_config.required_count(hf, "num_hidden_layers"),
            num_heads=hf_config.required_count(hf, "num_attention_heads"),
            positions=positions,
            max_model_len=hf_config.model_len(positions, max_model_len),
            embedding_size=hf_config.optional_count(hf, "word_embed_proj_dim", hidden_size),
            activation=check_activation(hf_config.text(hf, "activation_function", "relu")),
            norm_first=norm_first,
            final_norm=norm_first and not hf_config.flag(hf, "_remove_final_layer_norm", False),
            norm_affine=hf_config.flag(hf, "layer_norm_elementwise_affine", True),
            bias=hf_config.flag(hf, "enable_bias", True),
            tie_embeddings=hf_config.flag(hf, "tie_word_embeddings", True),
        )


class OPTAttention(nnx.Module):
    """Multi-head attention; Q, K and V come from one fused weight."""

    def __init__(self, config: OPTConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        shape = (config.num_heads, 3, config.head_dim)
        axes = ("kv_heads", "group", "head_dim")
        size = config.hidden_size
        make = {"dtype": dtype, "rngs": rngs}
        self.qkv = weight((*shape, size), (*axes, "embed"), **make)
        self.qkv_bias = weight(shape, axes, init="zeros", **make) if config.bias else None
        self.qkv_lora: LowRank | None = None
        self.out = Linear(size, size, ("embed", "heads"), bias=config.bias, **make)
        self.scale = config.head_dim**-0.5

    def __call__(
        self, x: Float[Array, "T E"], cache: LayerCache | None, batch: TokenBatch | None
    ) -> tuple[Float[Array, "T E"], LayerCache | None]:
        y = project(x, self.qkv[...], self.qkv_lora, adapters_of(batch)).y
        if self.qkv_bias is not None:
            y = y + self.qkv_bias[...][None]
        y, cache = attend(y[:, :, 0], y[:, :, 1], y[:, :, 2], cache, batch, scale=self.scale)
        return linear(self.out, y.reshape(x.shape[0], -1), adapters_of(batch)).y, cache


class OPTLayer(nnx.Module):
    """One transformer block, its norms before or after each half."""

    def __init__(self, config: OPTConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        size, inner = config.hidden_size, config.intermediate_size
        make = {"dtype": dtype, "rngs": rngs}
        self.attention_norm = LayerNorm(size, affine=config.norm_affine, **make)
        self.attention = OPTAttention(config, **make)
        self.mlp_norm = LayerNorm(size, affine=config.norm_affine, **make)
        self.up = Linear(size, inner, ("mlp", "embed"), bias=config.bias, **make)
        self.down = Linear(inner, size, ("embed", "mlp"), bias=config.bias, **make)
        self.activation = config.activation
        self.norm_first = config.norm_first

    def __call__(
        self, x: Float[Array, "T E"], cache: LayerCache | None, batch: TokenBatch | None
    ) -> tuple[Float[Array, "T E"], LayerCache | None]:
        if self.norm_first:
            y, cache = self.attention(self.attention_norm(x), cache, batch)
            x = x + y
            return x + self._feed_forward(self.mlp_norm(x), batch), cache
        y, cache = self.attention(x, cache, batch)
        x = self.attention_norm(x + y)
        return self.mlp_norm(x + self._feed_forward(x, batch)), cache

    @jax.named_scope("mlp")
    def _feed_forward(self, x: Float[Array, "T E"], batch: TokenBatch | None) -> Array:
        adapters = adapters_of(batch)
        y = ACTIVATIONS[self.activation](linear(self.up, x, adapters).y)
        return linear(self.down, y, adapters).y


class OPT(nnx.Module):
    """`OPTForCausalLM`."""

    config_class: ClassVar[type[OPTConfig]] = OPTConfig

    def __init__(self, config: OPTConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        size, outer = config.hidden_size, config.embedding_size
        make = {"dtype": dtype, "rngs": rngs}
        self.config = config
        self.embed = Embedding(config.vocab_size, outer, **make)
        self.embed_positions = Embedding(
            config.positions + _POSITION_OFFSET, size, ("position", "embed"), **make
        )
        inner, projected = ("embed", "embed_outer"), outer != size
        self.project_in = Linear(outer, size, inner, **make) if projected else None
        self.project_out = Linear(size, outer, inner[::-1], **make) if projected else None
        self.layers = nnx.List([OPTLayer(config, **make) for _ in range(config.num_layers)])
        self.norm = (
            LayerNorm(size, affine=config.norm_affine, **make) if config.final_norm else None
        )
        self.head = None if config.tie_embeddings else Embedding(config.vocab_size, outer, **make)
        self.embed_lora: LowRank | None = None
        self.head_lora: LowRank | None = None

    def __call__(
        self,
        tokens: Int[Array, " T"],
        batch: TokenBatch | None = None,
        cache: tuple[LayerCache, ...] | None = None,
    ) -> tuple[Float[Array, "T E"], tuple[LayerCache, ...] | None]:
        """As `Llama.__call__`."""
        positions = jnp.arange(tokens.shape[0]) if batch is None else batch.positions
        x = embedded(self.embed, self.embed_lora, tokens, adapters_of(batch)).y
        if self.project_in is not None:
            x = linear(self.project_in, x, adapters_of(batch)).y
        x = x + self.embed_positions(positions + _POSITION_OFFSET)
        x, cache = run_layers(self.layers, x, cache, batch)
        return x if self.norm is None else self.norm(x), cache

    @jax.named_scope("logits")
    def logits(
        self,
        hidden: Float[Array, "N E"],
        adapters: Int[Array, " N"] | None = None,
        mailbox: Mailbox | None = None,
    ) -> Float[Array, "N V"]:
        """float32 scores of the next token; `adapters` and `mailbox` as in `TokenBatch`."""
        if self.project_out is not None:
            hidden = linear(self.project_out, hidden, adapters).y
        head = self.embed if self.head is None else self.head
        return vocabulary(head, self.head_lora, hidden, adapters, mailbox=mailbox)

    @classmethod
    def checkpoint_map(cls, config: OPTConfig) -> CheckpointMap:
        """Which checkpoint tensor fills which part of which parameter."""
        decoder = "model.decoder"
        pieces = [
            Piece(f"{decoder}.embed_tokens.weight", "embed.weight"),
            Piece(f"{decoder}.embed_positions.weight", "embed_positions.weight"),
        ]
        if config.embedding_size != config.hidden_size:
            pieces.append(Piece(f"{decoder}.project_in.weight", "project_in.weight"))
            pieces.append(Piece(f"{decoder}.project_out.weight", "project_out.weight"))
        if config.final_norm and config.norm_affine:
            pieces += with_bias(f"{decoder}.final_layer_norm", "norm")
        if not config.tie_embeddings:
            pieces.append(Piece("lm_head.weight", "head.weight"))
        for i in range(config.num_layers):
            pieces += _layer_pieces(config, f"{decoder}.layers.{i}", f"layers.{i}")
        ignored = (r"lm_head\.weight",) if config.tie_embeddings else ()
        return CheckpointMap(tuple(pieces), ignored, canonical_name)


def _layer_pieces(config: OPTConfig, source: str, target: str) -> Iterator[Piece]:
    modules = {"self_attn.out_proj": "attention.out", "fc1": "up", "fc2": "down"}
    fused = {"weight": "attention.qkv", "bias": "attention.qkv_bias"}
    for kind in ("weight", "bias") if config.bias else ("weight",):
        for tensor, param in modules.items():
            yield Piece(f"{source}.{tensor}.{kind}", f"{target}.{param}.{kind}")
        for name, index in qkv_indices(1):
            yield Piece(f"{source}.self_attn.{name}_proj.{kind}", f"{target}.{fused[kind]}", index)
    if config.norm_affine:
        yield from with_bias(f"{source}.self_attn_layer_norm", f"{target}.attention_norm")
        yield from with_bias(f"{source}.final_layer_norm", f"{target}.mlp_norm")


def canonical_name(name: str) -> str:
    """Names of the first OPT checkpoints begin with `decoder.` rather than `model.decoder.`."""
    return f"model.{name}" if name.startswith("decoder.") else name
