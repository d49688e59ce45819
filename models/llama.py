"""Llama 2, 3 and 3.1, and the blocks that Mistral, Qwen and Phi-3 share with it."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ..pallas_kernels.block_reference import rotate
from ..pallas_kernels.peer_memory import Mailbox
from . import hf_config, rope
from .attention import LayerCache, Rotary, attend, attend_rotary, split_heads
from .batch import TokenBatch, adapters_of, mailbox_of
from .block import (
    Stream,
    Sum,
    add_norm,
    embedded,
    linear,
    norm_gated_matmul,
    norm_project,
    vocabulary,
)
from .checkpoint_map import CheckpointMap, Piece
from .features import Features
from .functional import run_layers
from .layers import (
    Embedding,
    Linear,
    RMSNorm,
    check_activation,
    weight,
)
from .low_rank import LowRank


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """What the program depends on: counts, sizes and options; hashable."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_model_len: int
    rope: rope.RopeConfig
    norm_eps: float
    activation: str
    tie_embeddings: bool
    windows: tuple[int | None, ...]
    """Tokens each layer's queries see, themselves included; None is all."""
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    kv_copies: int = 1
    """Of each KV head of the checkpoint, one a device; `num_kv_heads` counts them all."""

    @classmethod
    def from_hf(cls, hf: hf_config.HfConfig, max_model_len: int | None = None) -> Self:
        """From the dict in `config.json`.

        Args:
            max_model_len: most tokens of one sequence; None is what the model is made for.

        Raises:
            ModelConfigError: a field is missing or malformed, or `max_model_len` is above what
                the model is made for.
            UnsupportedModelError: the activation or the rope type is unknown.
        """
        return cls(**cls._fields(hf, max_model_len))

    @classmethod
    def _fields(cls, hf: hf_config.HfConfig, max_model_len: int | None) -> dict[str, Any]:
        """Keywords of the config; an architecture overrides it where its rules differ."""
        head_dim = _head_dim(hf)
        length = hf_config.model_len(rope.position_limit(hf), max_model_len)
        bias = hf_config.flag(hf, "attention_bias", False)
        layers = hf_config.required_count(hf, "num_hidden_layers")
        return {
            "vocab_size": hf_config.required_count(hf, "vocab_size"),
            "hidden_size": hf_config.required_count(hf, "hidden_size"),
            "intermediate_size": hf_config.required_count(hf, "intermediate_size"),
            "num_layers": layers,
            "num_heads": hf_config.required_count(hf, "num_attention_heads"),
            "num_kv_heads": _num_kv_heads(hf),
            "head_dim": head_dim,
            "max_model_len": length,
            "rope": rope.RopeConfig.from_hf(hf, head_dim, length),
            "norm_eps": hf_config.number(hf, "rms_norm_eps", 1e-6),
            "activation": check_activation(hf_config.text(hf, "hidden_act", "silu")),
            "tie_embeddings": hf_config.flag(hf, "tie_word_embeddings", False),
            "windows": (None,) * layers,
            "qkv_bias": bias,
            "out_bias": bias,
            "mlp_bias": hf_config.flag(hf, "mlp_bias", False),
        }


def _head_dim(hf: hf_config.HfConfig) -> int:
    if hf.get("head_dim") is not None:
        return hf_config.required_count(hf, "head_dim")
    hf_config.check_divides(hf, "num_attention_heads", "hidden_size")
    return hf["hidden_size"] // hf["num_attention_heads"]


def _num_kv_heads(hf: hf_config.HfConfig) -> int:
    if hf.get("num_key_value_heads") is None:
        return hf_config.required_count(hf, "num_attention_heads")
    hf_config.check_divides(hf, "num_key_value_heads", "num_attention_heads")
    return hf["num_key_value_heads"]


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions; Q, K and V come from one fused weight."""

    def __init__(
        self, config: LlamaConfig, window: int | None, *, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        shape = (config.num_kv_heads, config.num_heads // config.num_kv_heads + 2, config.head_dim)
        axes = ("kv_heads", "group", "head_dim")
        make = {"dtype": dtype, "rngs": rngs}
        self.qkv = weight((*shape, config.hidden_size), (*axes, "embed"), **make)
        self.qkv_bias = weight(shape, axes, init="zeros", **make) if config.qkv_bias else None
        self.qkv_lora: LowRank | None = None
        self.out = Linear(
            config.num_heads * config.head_dim,
            config.hidden_size,
            ("embed", "heads"),
            bias=config.out_bias,
            **make,
        )
        self.q_norm = _head_norm(config, **make) if config.qk_norm else None
        self.k_norm = _head_norm(config, **make) if config.qk_norm else None
        self.scale = config.head_dim**-0.5
        self.window = window

    def __call__(
        self,
        norm: RMSNorm,
        stream: Stream,
        rotary: Rotary,
        cache: LayerCache | None,
        batch: TokenBatch | None,
    ) -> tuple[Stream, LayerCache | None]:
        """Attention over the norm of the stream, which is to be added to it."""
        weights, adapters = (self.qkv[...], self.qkv_lora), adapters_of(batch)
        defer = self.q_norm is None
        x, (qkv, update, _) = norm_project(norm, stream, *weights, adapters, defer=defer)
        if self.qkv_bias is not None:
            qkv = qkv + self.qkv_bias[...][None]
        options = {"scale": self.scale, "window": self.window}
        if self.q_norm is None or self.k_norm is None:
            y, cache = attend_rotary(qkv, update, rotary, cache, batch, **options)
        else:
            q, k, v = split_heads(qkv)
            q, k = rotate(self.q_norm(q), *rotary), rotate(self.k_norm(k), *rotary)
            y, cache = attend(q, k, v, cache, batch, **options)
        y = y.reshape(x.shape[0], -1)
        y = linear(self.out, y, adapters, defer=True, mailbox=mailbox_of(batch))
        return (x, y), cache


def _head_norm(config: LlamaConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> RMSNorm:
    return RMSNorm(config.head_dim, config.norm_eps, ("head_dim",), dtype=dtype, rngs=rngs)


class GatedMLP(nnx.Module):
    """down(act(gate(x)) * up(x)), gate and up in one fused weight."""

    def __init__(self, config: LlamaConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        shape = (2, config.intermediate_size)
        axes = ("gate_up", "mlp")
        make = {"dtype": dtype, "rngs": rngs}
        self.gate_up = weight((*shape, config.hidden_size), (*axes, "embed"), **make)
        self.gate_up_bias = weight(shape, axes, init="zeros", **make) if config.mlp_bias else None
        self.gate_up_lora: LowRank | None = None
        self.down = Linear(
            config.intermediate_size,
            config.hidden_size,
            ("embed", "mlp"),
            bias=config.mlp_bias,
            **make,
        )
        self.activation = config.activation

    @jax.named_scope("mlp")
    def __call__(self, norm: RMSNorm, stream: Stream, batch: TokenBatch | None = None) -> Stream:
        """The MLP of the norm of the stream, which is to be added to it."""
        bias = None if self.gate_up_bias is None else self.gate_up_bias[...]
        weights, adapters = (self.gate_up[...], bias), adapters_of(batch)
        lora = self.gate_up_lora, adapters
        x, y = norm_gated_matmul(norm, stream, *weights, self.activation, *lora)
        return x, linear(self.down, y, adapters, defer=True, mailbox=mailbox_of(batch))


class LlamaLayer(nnx.Module):
    """One pre-norm transformer block."""

    def __init__(
        self, config: LlamaConfig, window: int | None, *, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        make = {"dtype": dtype, "rngs": rngs}
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps, **make)
        self.attention = Attention(config, window, **make)
        self.mlp_norm = RMSNorm(config.hidden_size, config.norm_eps, **make)
        self.mlp = GatedMLP(config, **make)

    def __call__(
        self,
        stream: Stream,
        cache: LayerCache | None,
        rotary: Rotary,
        batch: TokenBatch | None,
    ) -> tuple[Stream, LayerCache | None]:
        stream, cache = self.attention(self.attention_norm, stream, rotary, cache, batch)
        return self.mlp(self.mlp_norm, stream, batch), cache


class Llama(nnx.Module):
    """`LlamaForCausalLM`."""

    config_class: ClassVar[type[LlamaConfig]] = LlamaConfig

    def __init__(self, config: LlamaConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        make = {"dtype": dtype, "rngs": rngs}
        self.config = config
        self.embed = Embedding(config.vocab_size, config.hidden_size, **make)
        self.layers = nnx.List([LlamaLayer(config, window, **make) for window in config.windows])
        self.norm = RMSNorm(config.hidden_size, config.norm_eps, **make)
        tied = config.tie_embeddings
        self.head = None if tied else Embedding(config.vocab_size, config.hidden_size, **make)
        self.embed_lora: LowRank | None = None
        self.head_lora: LowRank | None = None

    def __call__(
        self,
        tokens: Int[Array, " T"],
        batch: TokenBatch | None = None,
        cache: tuple[LayerCache, ...] | None = None,
        features: Features | None = None,
    ) -> tuple[Float[Array, "T E"], tuple[LayerCache, ...] | None]:
        """Hidden states of the tokens, after the last norm, and the cache with their K and V.

        Without batch and cache the tokens are one sequence from position 0 (for training). The
        cache is one (K, V) a layer, and is written in place where the caller donates it.
        `features` take the place of some tokens' embeddings.
        """
        rotary = self._rotary(tokens, batch)
        weights, adapters = (self.embed, self.embed_lora), adapters_of(batch)
        if features is None:
            total = embedded(*weights, tokens, adapters, mailbox=mailbox_of(batch))
        else:
            total = Sum(features.over(embedded(*weights, tokens, adapters).y))
        stream = jnp.zeros_like(total.y), total
        stream, cache = run_layers(self.layers, stream, cache, rotary, batch)
        return add_norm(self.norm, *stream)[1], cache

    def _rotary(self, tokens: Int[Array, " T"], batch: TokenBatch | None) -> Rotary:
        """Cosine and sine of the tokens' rotary positions."""
        positions = jnp.arange(tokens.shape[0]) if batch is None else batch.positions
        return self.config.rope.cos_sin(positions)

    @jax.named_scope("logits")
    def logits(
        self,
        hidden: Float[Array, "N E"],
        adapters: Int[Array, " N"] | None = None,
        mailbox: Mailbox | None = None,
    ) -> Float[Array, "N V"]:
        """float32 scores of the next token; `adapters` and `mailbox` as in `TokenBatch`."""
        head = self.embed if self.head is None else self.head
        return vocabulary(head, self.head_lora, hidden, adapters, mailbox=mailbox)

    @classmethod
    def checkpoint_map(cls, config: LlamaConfig) -> CheckpointMap:
        """Which checkpoint tensor fills which part of which parameter."""
        pieces = [
            Piece("model.embed_tokens.weight", "embed.weight"),
            Piece("model.norm.weight", "norm.weight"),
        ]
        if not config.tie_embeddings:
            pieces.append(Piece("lm_head.weight", "head.weight"))
        for i in range(config.num_layers):
            pieces += cls._layer_pieces(config, f"model.layers.{i}", f"layers.{i}")
        ignored = (r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",)
        if config.tie_embeddings:
            ignored += (r"lm_head\.weight",)
        return CheckpointMap(tuple(pieces), ignored, canonical_name)

    @classmethod
    def _layer_pieces(cls, config: LlamaConfig, source: str, target: str) -> Iterator[Piece]:
        attention, mlp = f"{source}.self_attn", f"{source}.mlp"
        yield Piece(f"{source}.input_layernorm.weight", f"{target}.attention_norm.weight")
        yield Piece(f"{source}.post_attention_layernorm.weight", f"{target}.mlp_norm.weight")
        yield from cls._fused_pieces(config, source, target)
        yield Piece(f"{attention}.o_proj.weight", f"{target}.attention.out.weight")
        yield Piece(f"{mlp}.down_proj.weight", f"{target}.mlp.down.weight")
        if config.out_bias:
            yield Piece(f"{attention}.o_proj.bias", f"{target}.attention.out.bias")
        if config.mlp_bias:
            yield Piece(f"{mlp}.down_proj.bias", f"{target}.mlp.down.bias")
        if config.qk_norm:
            yield Piece(f"{attention}.q_norm.weight", f"{target}.attention.q_norm.weight")
            yield Piece(f"{attention}.k_norm.weight", f"{target}.attention.k_norm.weight")

    @classmethod
    def _fused_pieces(cls, config: LlamaConfig, source: str, target: str) -> Iterator[Piece]:
        """The tensors that fill the fused weights and biases."""
        groups = config.num_heads // config.num_kv_heads
        for tensor, index in qkv_indices(groups, config.kv_copies):
            name = f"{source}.self_attn.{tensor}_proj"
            yield Piece(f"{name}.weight", f"{target}.attention.qkv", index)
            if config.qkv_bias:
                yield Piece(f"{name}.bias", f"{target}.attention.qkv_bias", index)
        for index, tensor in enumerate(("gate", "up")):
            name = f"{source}.mlp.{tensor}_proj"
            yield Piece(f"{name}.weight", f"{target}.mlp.gate_up", index)
            if config.mlp_bias:
                yield Piece(f"{name}.bias", f"{target}.mlp.gate_up_bias", index)


def qkv_indices(groups: int, copies: int = 1) -> Iterator[tuple[str, tuple[slice, slice | int]]]:
    """Where q, k and v stand in a fused weight [Hkv, groups + 2, ...]; k and v once a copy."""
    yield "q", (slice(None), slice(groups))
    for place, name in enumerate("kv", start=groups):
        for copy in range(copies):
            yield name, (slice(copy, None, copies), place)


def canonical_name(name: str) -> str:
    """Names of checkpoints saved from the bare model lack the prefix `model.`."""
    return f"model.{name}" if re.match(r"(embed_tokens|layers|norm|rotary_emb)\.", name) else name
