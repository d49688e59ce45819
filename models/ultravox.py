"""Ultravox (https://github.com/fixie-ai/ultravox): sounds through Whisper's tower, stacked states
and a gated projection, into Llama."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..errors import ModelConfigError, UnsupportedModelError
from . import hf_config, whisper
from .checkpoint_map import CheckpointMap, Piece, renamed
from .layers import Linear, RMSNorm
from .llama import Llama, LlamaConfig, canonical_name
from .part import Part
from .qwen2_audio import ClipLike
from .whisper import STRIDE, WhisperConfig, WhisperTower

_TEXT_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
}
_AUDIO_DEFAULTS: dict[str, Any] = {
    "d_model": 384,
    "encoder_attention_heads": 6,
    "encoder_ffn_dim": 1536,
    "encoder_layers": 4,
    "max_source_positions": 1500,
    "num_mel_bins": 80,
}
"""What `transformers` takes where a file does not say."""
_RESERVED, _UNKNOWN = 128002, 0
"""Tokens that no text has, of Llama 3 and of smaller vocabularies."""
_UNUSED = 32000
"""What old files name as `audio_token_index`, whatever it is in their vocabulary."""
_EPS = 1e-6
"""Of all norms of the projector; no file says it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class UltravoxConfig(LlamaConfig):
    """The text's fields, flat, and those of what makes features of sounds."""

    audio: WhisperConfig
    audio_token: int
    """The token that stands for one feature of a sound in a prompt."""
    stack: int
    """States of the tower that become one feature."""
    projector_size: int
    """Elements that the gate of the projector leaves."""
    norm_mid: bool
    """Whether the projector's last norm is before its last product, as from version 0.5 on."""

    @classmethod
    def _fields(cls, hf: hf_config.HfConfig, max_model_len: int | None) -> dict[str, Any]:
        whole = "an UltravoxModel"
        text = _TEXT_DEFAULTS | hf_config.part_of_kind(hf, "text_config", "llama", whole)
        audio = hf_config.part_of_kind(hf, "audio_config", "whisper", whole)
        _check_projector(hf)
        fields = super()._fields(text, max_model_len)
        return fields | {
            "audio": WhisperConfig.from_hf(audio, _AUDIO_DEFAULTS, pool=1),
            "audio_token": _audio_token(hf, fields["vocab_size"]),
            "stack": hf_config.optional_count(hf, "stack_factor", 8),
            "projector_size": hf_config.optional_count(hf, "hidden_size", 4096) // 2,
            "norm_mid": hf_config.flag(hf, "projector_ln_mid", False),
        }

    @property
    def piece_rows(self) -> int:
        """Features of a piece of a clip, padding included."""
        return -(-self.audio.max_states // self.stack)

    def rows(self, frames: int) -> int:
        """Features of a clip of so many mel frames, which is heard in pieces if it is long."""
        whole, rest = divmod(frames, self.audio.num_frames)
        return whole * self.piece_rows - (-self.audio.states(rest) // self.stack)


def _audio_token(hf: hf_config.HfConfig, vocab_size: int) -> int:
    """`audio_token_index`, or one that no text has where the vocabulary lacks that. Published
    models put features in the place of a mark in the text, so that it may be any."""
    given = hf_config.optional_count(hf, "audio_token_index", _UNUSED, least=0)
    tokens = (_RESERVED,) if given == _UNUSED else (given, _RESERVED)
    return next((token for token in tokens if token < vocab_size), _UNKNOWN)


def _check_projector(hf: hf_config.HfConfig) -> None:
    """Raises UnsupportedModelError for other kinds, ModelConfigError for an odd size."""
    supported = {
        "projector_act": "swiglu",
        "num_projector_layers": 0,
        "audio_latency_block_size": 0,
    }
    for name, value in supported.items():
        if (hf.get(name) or value) != value:
            raise UnsupportedModelError(
                f"The field {name!r} in the model's config.json is {hf[name]!r}; only {value!r} is "
                "supported. Use a model that has it so."
            )
    if (size := hf_config.optional_count(hf, "hidden_size", 4096)) % 2:
        raise ModelConfigError(
            f"The field 'hidden_size' in the model's config.json is {size}; it must be even, "
            "because half of it is the projector's gate. Correct the file."
        )


@dataclasses.dataclass(frozen=True)
class ClipPiece:
    """What the tower takes of a clip at once, as `ClipLike`."""

    mels: np.ndarray
    frames: int


@dataclasses.dataclass(frozen=True)
class UltravoxEncoder:
    """How clips become inputs of `encode`; a run's size is in pieces of clips.

    The tower works on the T frames that the mels of a clip have and attends to those that are not
    padding, so the mels of a clip alone should have no padding. A clip that is longer than the
    tower's positions is encoded in pieces, the last of which is padded.
    """

    config: UltravoxConfig

    least: ClassVar[int] = 1
    """The smallest `size`."""

    def parts(self, clip: ClipLike) -> list[ClipPiece]:
        """What is encoded apart: pieces as long as the tower takes, or the clip as it is."""
        most, width = self.config.audio.num_frames, clip.mels.shape[1]
        if width <= most:
            return [ClipPiece(clip.mels, clip.frames)]
        padded = np.pad(clip.mels, ((0, 0), (0, -width % most)))
        return [
            ClipPiece(padded[:, start : start + most], min(clip.frames - start, most))
            for start in range(0, clip.frames, most)
        ]

    def units(self, clip: ClipLike) -> int:
        """Pieces of a clip."""
        return len(self.parts(clip))

    def size_for(self, tokens: int) -> int:
        """The smallest size that takes `tokens` features of pieces that are as long as may be."""
        return max(-(-tokens // self.config.piece_rows), self.least)

    def num_patches(self, size: int) -> int:
        """States that the tower works on in a run, for an estimate of its memory."""
        return size * self.config.audio.max_states

    def num_rows(self, size: int) -> int:
        """Rows that `encode` gives for a run of `size` pieces, those of padding included."""
        return size * self.config.piece_rows

    def num_tokens(self, clip: ClipLike) -> int:
        """Rows of one clip; clips' rows stand one after the other, padding last."""
        return self.config.rows(clip.frames)

    def abstract(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of `inputs`."""
        mels = (size, self.config.audio.num_mel_bins, self.config.audio.num_frames)
        return {
            "mels": jax.ShapeDtypeStruct(mels, np.float32),
            "frames": jax.ShapeDtypeStruct((size,), np.int32),
            "ends": jax.ShapeDtypeStruct((size,), np.int32),
            "rows": jax.ShapeDtypeStruct((self.num_rows(size),), np.int32),
        }

    def inputs(self, clips: Sequence[ClipLike], size: int) -> dict[str, np.ndarray]:
        """The clips of one run, of together at most `size` pieces: of each piece its mels, how many
        of their frames are not padding and how many there are; and which of all stacks of states
        become features.

        Raises:
            ModelConfigError: a clip has other mel bins than the tower.
        """
        arrays = {name: np.zeros(s.shape, s.dtype) for name, s in self.abstract(size).items()}
        start = 0
        for i, piece in enumerate(piece for clip in clips for piece in self.parts(clip)):
            self._check(piece)
            width = piece.mels.shape[1]
            arrays["mels"][i, :, :width] = piece.mels
            arrays["frames"][i], arrays["ends"][i] = piece.frames, width
            count = self.num_tokens(piece)
            arrays["rows"][start : start + count] = i * self.config.piece_rows + np.arange(count)
            start += count
        return arrays

    def _check(self, piece: ClipPiece) -> None:
        if (given := piece.mels.shape[0]) != (bins := self.config.audio.num_mel_bins):
            raise ModelConfigError(
                f"A clip was prepared with {given} mel bins, but the model takes {bins}: "
                "feature_size in preprocessor_config.json must be num_mel_bins of the "
                "audio_config in config.json. Correct the files."
            )


class UltravoxProjector(nnx.Module):
    """down(norm(silu(gate(x)) * up(x))) of normed stacks of states, or norm(down(...)) in old
    models."""

    def __init__(self, config: UltravoxConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        stacked, middle = config.audio.hidden_size * config.stack, config.projector_size
        size = config.hidden_size
        make = {"dtype": dtype, "rngs": rngs}
        self.norm = RMSNorm(stacked, _EPS, ("vision_embed",), **make)
        self.gate = Linear(stacked, middle, ("mlp", "vision_embed"), **make)
        self.up = Linear(stacked, middle, ("mlp", "vision_embed"), **make)
        self.mid_norm = RMSNorm(middle, _EPS, ("mlp",), **make) if config.norm_mid else None
        self.down = Linear(middle, size, ("embed", "mlp"), **make)
        self.out_norm = None if config.norm_mid else RMSNorm(size, _EPS, **make)

    @jax.named_scope("projector")
    def __call__(self, x: Float[Array, "F S"]) -> Float[Array, "F E"]:
        x = self.norm(x)
        x = jax.nn.silu(self.gate(x)) * self.up(x)
        x = self.down(x if self.mid_norm is None else self.mid_norm(x))
        return x if self.out_norm is None else self.out_norm(x)


class Ultravox(Llama):
    """`UltravoxModel` with Whisper's tower and Llama as its text model."""

    config_class: ClassVar[type[LlamaConfig]] = UltravoxConfig
    towers: ClassVar[tuple[str, ...]] = ("audio", "projector")
    """Top-level attributes that only `encode` uses."""
    parts: ClassVar[Mapping[str, Part]] = {
        "text": Part("text_model_id", "text_config", "language_model.", ("model.", "lm_head.")),
        "audio": Part("audio_model_id", "audio_config", "audio_tower.", ("audio_tower.",)),
    }
    """Those that published checkpoints lack, by kind."""

    def __init__(self, config: UltravoxConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        super().__init__(config, dtype=dtype, rngs=rngs)
        self.audio = WhisperTower(config.audio, dtype=dtype, rngs=rngs)
        self.projector = UltravoxProjector(config, dtype=dtype, rngs=rngs)
        self.stack = config.stack

    def encode(self, inputs: Mapping[str, Array]) -> Float[Array, "F E"]:
        """Features of all clips of one run of the tower, rows in order of the clips.

        Args:
            inputs: as `UltravoxEncoder.inputs` makes them.
        """
        ends = inputs["ends"]
        states = self.audio(inputs["mels"], inputs["frames"], ends)
        there = jnp.arange(states.shape[1])[None] * STRIDE < ends[:, None]
        states = jnp.where(there[..., None], states, jnp.zeros_like(states))
        stacks = stacked(states, self.stack)
        return self.projector(stacks.at[inputs["rows"]].get(mode="clip"))

    @classmethod
    def encoders(cls, config: UltravoxConfig) -> dict[str, UltravoxEncoder]:
        """How the host prepares what `encode` takes, by kind of media."""
        return {"audio": UltravoxEncoder(config)}

    @classmethod
    def checkpoint_map(cls, config: LlamaConfig) -> CheckpointMap:
        """As Llama's, whose names the tensors of the text have; `canonical` leads to them."""
        assert isinstance(config, UltravoxConfig)
        text = super().checkpoint_map(config)
        audio = whisper.pieces(config.audio, "audio_tower", "audio")
        pieces = (*text.pieces, *audio, *_projector_pieces(config))
        return CheckpointMap(pieces, (*text.ignored, *_IGNORED), canonical)


def stacked(states: Float[Array, "N S E"], count: int) -> Float[Array, "N*R count*E"]:
    """`count` neighbours each, side by side; zeros where a piece's last stack lacks states."""
    padded = jnp.pad(states, ((0, 0), (0, -states.shape[1] % count), (0, 0)))
    return padded.reshape(-1, count * states.shape[-1])


def _projector_pieces(config: UltravoxConfig) -> Iterator[Piece]:
    source, target, half = "multi_modal_projector", "projector", config.projector_size
    first = f"{source}.linear_1.weight"
    yield Piece(first, f"{target}.up.weight", rows=slice(half))
    yield Piece(first, f"{target}.gate.weight", rows=slice(half, 2 * half))
    yield Piece(f"{source}.linear_2.weight", f"{target}.down.weight")
    yield Piece(f"{source}.ln_pre.weight", f"{target}.norm.weight")
    last = ("ln_mid", "mid_norm") if config.norm_mid else ("ln_post", "out_norm")
    yield Piece(f"{source}.{last[0]}.weight", f"{target}.{last[1]}.weight")


_NAMES = (
    (r"audio_tower\.(model\.)?(encoder\.)?", "audio_tower."),
    (r"language_model\.lm_head\.", "lm_head."),
    (r"language_model\.(model\.)?", "model."),
)
"""How names begin where parts have prefixes and keep their own names, and in `checkpoint_map`."""
_IGNORED = (r"audio_tower\.decoder\..*", r"audio_tower\.proj_out\.weight")
"""What a Whisper has that its tower lacks."""


def canonical(name: str) -> str:
    """The name in `Ultravox.checkpoint_map` of a tensor under any name it was published under."""
    return canonical_name(renamed(name, _NAMES))
