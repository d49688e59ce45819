"""Qwen2-Audio (arXiv:2407.10759): sounds through Whisper's tower and a projection, into Qwen 2."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import jax
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..errors import ModelConfigError
from . import hf_config, qwen2, whisper
from .checkpoint_map import CheckpointMap, renamed, with_bias
from .layers import Linear
from .llama import LlamaConfig, canonical_name
from .qwen2 import Qwen2, Qwen2Config
from .whisper import WhisperConfig, WhisperTower

_POOL = 2
"""States of the tower whose mean becomes one feature."""
_TEXT_DEFAULTS = {**qwen2.DEFAULTS, "rms_norm_eps": 1e-6, "rope_theta": 10000.0}
_AUDIO_DEFAULTS: dict[str, Any] = {
    "d_model": 1280,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "encoder_layers": 32,
    "max_source_positions": 1500,
    "num_mel_bins": 128,
}
"""What `transformers` takes where a file does not say."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen2AudioConfig(Qwen2Config):
    """The text's fields, flat, and those of what makes features of sounds."""

    audio: WhisperConfig
    audio_token: int
    """The token that stands for one feature of a sound in a prompt."""

    @classmethod
    def _fields(cls, hf: hf_config.HfConfig, max_model_len: int | None) -> dict[str, Any]:
        whole = "a Qwen2AudioForConditionalGeneration"
        text = _TEXT_DEFAULTS | hf_config.part_of_kind(hf, "text_config", "qwen2", whole)
        text["architectures"] = hf.get("architectures")
        text["tie_word_embeddings"] = hf_config.tied(hf, text)
        fields = super()._fields(text, max_model_len)
        audio = hf_config.part_of_kind(hf, "audio_config", "qwen2_audio_encoder", whole)
        return fields | {
            "audio": WhisperConfig.from_hf(audio, _AUDIO_DEFAULTS, _POOL),
            "audio_token": hf_config.token(hf, "audio", 151646, fields["vocab_size"]),
        }


class ClipLike(Protocol):
    """A sound as its log-mel spectrogram, padded to what the tower takes."""

    @property
    def mels(self) -> np.ndarray:
        """Float32 [M, T]."""
        ...

    @property
    def frames(self) -> int:
        """How many of the T are not padding."""
        ...


@dataclasses.dataclass(frozen=True)
class Qwen2AudioEncoder:
    """How clips become inputs of `encode`; a run's size is in clips, however long they are."""

    audio: WhisperConfig

    least: ClassVar[int] = 1
    """The smallest `size`."""

    def units(self, clip: ClipLike) -> int:
        """Each clip is one of a run's `size`."""
        return 1

    def size_for(self, tokens: int) -> int:
        """The smallest size that takes `tokens` features of clips that are as long as may be."""
        return max(-(-tokens // self.audio.num_rows), self.least)

    def num_patches(self, size: int) -> int:
        """States that the tower works on in a run, for an estimate of its memory."""
        return size * self.audio.max_states

    def num_rows(self, size: int) -> int:
        """Rows that `encode` gives for a run of `size` clips, those of padding included."""
        return size * self.audio.num_rows

    def num_tokens(self, clip: ClipLike) -> int:
        """Rows of one clip; clips' rows stand one after the other, padding last."""
        return self.audio.rows(clip.frames)

    def abstract(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of `inputs`."""
        mels = (size, self.audio.num_mel_bins, self.audio.num_frames)
        return {
            "mels": jax.ShapeDtypeStruct(mels, np.float32),
            "frames": jax.ShapeDtypeStruct((size,), np.int32),
            "rows": jax.ShapeDtypeStruct((self.num_rows(size),), np.int32),
        }

    def inputs(self, clips: Sequence[ClipLike], size: int) -> dict[str, np.ndarray]:
        """The clips of one run, at most `size`, how many frames of each are not padding, and which
        of all outputs of the tower are features.

        Raises:
            ModelConfigError: a clip is not as long as the tower needs, or has other mel bins.
        """
        arrays = {name: np.zeros(s.shape, s.dtype) for name, s in self.abstract(size).items()}
        expected = self.audio.num_mel_bins, self.audio.num_frames
        start = 0
        for i, clip in enumerate(clips):
            if clip.mels.shape != expected:
                raise ModelConfigError(
                    f"A clip was prepared as mels of shape {list(clip.mels.shape)}, but the model "
                    f"takes {list(expected)}: feature_size and chunk_length in "
                    "preprocessor_config.json must be as num_mel_bins and max_source_positions of "
                    "the audio_config in config.json. Correct the files."
                )
            arrays["mels"][i] = clip.mels
            arrays["frames"][i] = clip.frames
            count = self.num_tokens(clip)
            arrays["rows"][start : start + count] = i * self.audio.num_rows + np.arange(count)
            start += count
        return arrays


class Qwen2Audio(Qwen2):
    """`Qwen2AudioForConditionalGeneration`."""

    config_class: ClassVar[type[LlamaConfig]] = Qwen2AudioConfig
    towers: ClassVar[tuple[str, ...]] = ("audio", "projector")
    """Top-level attributes that only `encode` uses."""

    def __init__(self, config: Qwen2AudioConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        super().__init__(config, dtype=dtype, rngs=rngs)
        inner, size = config.audio.hidden_size, config.hidden_size
        make = {"dtype": dtype, "rngs": rngs}
        self.audio = WhisperTower(config.audio, **make)
        self.projector = Linear(inner, size, ("embed", "vision_embed"), bias=True, **make)

    def encode(self, inputs: Mapping[str, Array]) -> Float[Array, "F E"]:
        """Features of all clips of one run of the tower, rows in order of the clips.

        Args:
            inputs: as `Qwen2AudioEncoder.inputs` makes them.
        """
        states = self.audio(inputs["mels"], inputs["frames"])
        rows = states.reshape(-1, states.shape[-1]).at[inputs["rows"]].get(mode="clip")
        return self.projector(rows)

    @classmethod
    def encoders(cls, config: Qwen2AudioConfig) -> dict[str, Qwen2AudioEncoder]:
        """How the host prepares what `encode` takes, by kind of media."""
        return {"audio": Qwen2AudioEncoder(config.audio)}

    @classmethod
    def checkpoint_map(cls, config: LlamaConfig) -> CheckpointMap:
        """As Qwen 2's, whose names the tensors of the text have; `canonical` leads to them."""
        assert isinstance(config, Qwen2AudioConfig)
        text = super().checkpoint_map(config)
        audio = whisper.pieces(config.audio, "audio_tower", "audio")
        projector = with_bias("multi_modal_projector.linear", "projector")
        pieces = (*text.pieces, *audio, *projector)
        return dataclasses.replace(text, pieces=pieces, canonical=canonical)


_NAMES = (
    (r"(model\.)?audio_tower\.", "audio_tower."),
    (r"(model\.)?multi_modal_projector\.", "multi_modal_projector."),
    (r"language_model\.lm_head\.", "lm_head."),
    (r"(model\.)?language_model\.(model\.)?", "model."),
)
"""How names begin in checkpoints of all versions of transformers, and in `checkpoint_map`."""


def canonical(name: str) -> str:
    """The name in `Qwen2Audio.checkpoint_map` of a tensor under any name it was published under."""
    return canonical_name(renamed(name, _NAMES))
