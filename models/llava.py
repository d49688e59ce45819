"""LLaVA-1.5: pictures through CLIP's tower and a projector of two layers, into Llama.

The projector is that of arXiv:2310.03744.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..errors import ModelConfigError, UnsupportedModelError
from . import clip, hf_config, projector
from .checkpoint_map import CheckpointMap, renamed
from .clip import CHANNELS, ClipConfig, ClipTower
from .layers import check_activation
from .llama import Llama, LlamaConfig
from .projector import Projector

LLAMA_7B: Mapping[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
}
"""Fields of `text_config` that files leave out where they are so."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlavaConfig(LlamaConfig):
    """The text's fields, and those of what makes features of pictures.

    `image_seq_length` of the file is not read: how many features a picture has follows from the
    tower.
    """

    texts: ClassVar[Mapping[str, tuple[type[LlamaConfig], Mapping[str, Any]]]] = {
        "llama": (LlamaConfig, LLAMA_7B)
    }
    """By `model_type`: how the config of the text model is read, and what its file may lack."""
    usual_image_token: ClassVar[int] = 32000

    vision: ClipConfig
    image_token: int
    """The token that stands for one feature of a picture in a prompt."""
    full: bool
    """Whether the class token's feature is kept, before those of the patches."""
    projector_activation: str
    projector_bias: bool

    @property
    def picture_rows(self) -> int:
        """Features of one picture."""
        return self.vision.num_patches + self.full

    @classmethod
    def _fields(cls, hf: hf_config.HfConfig, max_model_len: int | None) -> dict[str, Any]:
        fields = cls._text_fields(hf, max_model_len)
        activation = hf_config.text(hf, "projector_hidden_act", "gelu")
        layer = hf.get("vision_feature_layer")
        vision = hf_config.part(hf, "vision_config", clip.VIT_L_14_336)
        return fields | {
            "vision": ClipConfig.from_hf(vision, -2 if layer is None else layer),
            "image_token": hf_config.token(
                hf, "image", cls.usual_image_token, fields["vocab_size"]
            ),
            "full": _keeps_class_token(hf),
            "projector_activation": check_activation(activation),
            "projector_bias": hf_config.flag(hf, "multimodal_projector_bias", True),
        }

    @classmethod
    def _text_fields(cls, hf: hf_config.HfConfig, max_model_len: int | None) -> dict[str, Any]:
        text = hf_config.part(hf, "text_config", {})
        kind = hf_config.text(text, "model_type", "llama")
        if kind not in cls.texts:
            raise UnsupportedModelError(
                f"The text_config in the model's config.json has the model_type {kind!r}; only "
                f"{' or '.join(map(repr, cls.texts))} is supported beside this tower. Use a model "
                "made of that, such as one with Vicuna."
            )
        config, usual = cls.texts[kind]
        absent = {name for name, value in text.items() if value is None} - {"sliding_window"}
        given = {name: value for name, value in text.items() if name not in absent}
        tied = {"tie_word_embeddings": hf_config.tied(hf, text)}
        return config._fields({**usual, **given, **tied}, max_model_len)


def _keeps_class_token(hf: hf_config.HfConfig) -> bool:
    strategy = hf_config.text(hf, "vision_feature_select_strategy", "default")
    if strategy not in ("default", "full"):
        raise ModelConfigError(
            f"The field 'vision_feature_select_strategy' in the model's config.json is "
            f"{strategy!r}; allowed are 'default' and 'full'. Correct the file."
        )
    return strategy == "full"


@dataclasses.dataclass(frozen=True)
class LlavaEncoder:
    """How pictures become inputs of `encode`; a run's size is in pictures."""

    name: str
    """`pixels`, or `states` for pictures that are given as outputs of the tower."""
    picture_shape: tuple[int, ...]
    """Of a picture, float32: [3, H, W], or [N, V] of its states."""
    rows: int
    """Features of one picture."""

    least: ClassVar[int] = 1
    """The smallest `size`."""

    def units(self, picture: np.ndarray) -> int:
        """Each picture is one of a run's `size`."""
        return 1

    def inputs(self, pictures: Sequence[np.ndarray], size: int) -> dict[str, np.ndarray]:
        """The pictures of one run, at most `size`, and zeros behind them.

        Raises:
            ModelConfigError: a picture is not as large as the tower needs.
        """
        values = np.zeros((size, *self.picture_shape), np.float32)
        for i, picture in enumerate(pictures):
            if picture.shape != self.picture_shape:
                raise ModelConfigError(
                    f"A picture of shape {list(picture.shape)} was prepared, but the model takes "
                    f"{list(self.picture_shape)}: crop_size in preprocessor_config.json must be "
                    "image_size of the vision_config in config.json. Correct the files."
                )
            values[i] = picture
        return {self.name: values}

    def size_for(self, tokens: int) -> int:
        """The smallest size that takes whatever pictures have together `tokens` features."""
        return max(tokens // self.rows, self.least)

    def num_patches(self, size: int) -> int:
        """What the tower works on in a run, for an estimate of its memory."""
        return size * (self.rows + 1)

    def num_rows(self, size: int) -> int:
        """Rows that `encode` gives for a run of `size` pictures, those of padding included."""
        return size * self.rows

    def num_tokens(self, picture: np.ndarray) -> int:
        """Rows of one picture, the same for all."""
        return self.rows

    def abstract(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of `inputs`."""
        return {self.name: jax.ShapeDtypeStruct((size, *self.picture_shape), np.float32)}


class ClipLlama(Llama):
    """Llama beside a tower of CLIP and a projector."""

    config_class: ClassVar[type[LlamaConfig]] = LlavaConfig
    towers: ClassVar[tuple[str, ...]] = ("vision", "projector")
    """Top-level attributes that only `encode` uses."""

    def __init__(self, config: LlavaConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        super().__init__(config, dtype=dtype, rngs=rngs)
        self.vision = ClipTower(config.vision, dtype=dtype, rngs=rngs)
        self.projector = Projector(
            config.vision.feature_size,
            config.hidden_size,
            config.projector_activation,
            bias=config.projector_bias,
            dtype=dtype,
            rngs=rngs,
        )

    @classmethod
    def checkpoint_map(cls, config: LlamaConfig) -> CheckpointMap:
        """As Llama's, whose names the tensors of the text have; `canonical` leads to them."""
        assert isinstance(config, LlavaConfig)
        text = super().checkpoint_map(config)
        pieces = [*text.pieces, *clip.pieces(config.vision, "vision_tower", "vision")]
        pieces += projector.pieces(config.projector_bias)
        ignored = text.ignored + clip.ignored(config.vision, "vision_tower")
        return CheckpointMap(tuple(pieces), ignored, canonical)


class Llava(ClipLlama):
    """`LlavaForConditionalGeneration` with Llama as its text model."""

    def __init__(self, config: LlavaConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        super().__init__(config, dtype=dtype, rngs=rngs)
        self.full = config.full

    def encode(self, inputs: Mapping[str, Array]) -> Float[Array, "F E"]:
        """Features of all pictures of one run of the tower, rows in order of the pictures.

        Args:
            inputs: as `LlavaEncoder.inputs` makes them.
        """
        if "states" in inputs:
            rows = self.projector(inputs["states"].astype(self.projector.up.weight.dtype))
        else:
            states = self.vision(inputs["pixels"])
            rows = self.projector(states if self.full else states[:, 1:])
        return rows.reshape(-1, rows.shape[-1])

    @classmethod
    def encoders(cls, config: LlavaConfig) -> dict[str, LlavaEncoder]:
        """How the host prepares what `encode` takes, by kind of media."""
        edge = config.vision.image_size
        return {"image": LlavaEncoder("pixels", (CHANNELS, edge, edge), config.picture_rows)}

    @classmethod
    def state_encoder(cls, config: LlavaConfig) -> LlavaEncoder:
        """The same for pictures that are given as what the tower makes of them."""
        rows = config.picture_rows
        return LlavaEncoder("states", (rows, config.vision.feature_size), rows)


_NAMES = (
    (r"model\.(?=(image_newline|vision_resampler)\b)", ""),
    (r"(model\.)?vision_tower\.(vision_model\.)?", "vision_tower."),
    (r"(model\.)?multi_modal_projector\.", "multi_modal_projector."),
    (r"language_model\.lm_head\.", "lm_head."),
    (r"(model\.)?language_model\.(model\.)?", "model."),
)
"""How names begin in checkpoints of all versions of transformers, and in `checkpoint_map`."""


def canonical(name: str) -> str:
    """The name in `checkpoint_map` of a tensor of any LLaVA under any it was published under."""
    return renamed(name, _NAMES)
