"""Qwen2-VL (arXiv:2409.12191): Qwen 2 with pictures, and positions along time, height and width."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ..pallas_kernels.range_reference import BLOCK
from . import hf_config, mrope, rope
from .attention import Rotary
from .batch import TokenBatch
from .checkpoint_map import CheckpointMap
from .llama import LlamaConfig, canonical_name
from .qwen2 import Qwen2, Qwen2Config
from .qwen2_vision import Qwen2VisionConfig, Qwen2VisionTower, tower_pieces

_TEXT_DEFAULTS: dict[str, Any] = {
    "vocab_size": 152064,
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "max_window_layers": 80,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
}
"""What `transformers` takes where a file does not say."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen2VLConfig(Qwen2Config):
    """The language model's fields, flat, and the tower's."""

    vision: Qwen2VisionConfig
    mrope_section: mrope.Sections
    image_token: int
    """The token that stands where a feature of a picture goes."""
    video_token: int
    """The token that stands where a feature of a video goes."""

    @classmethod
    def _fields(cls, hf: hf_config.HfConfig, max_model_len: int | None) -> dict[str, Any]:
        text = _text_fields(hf)
        fields = super()._fields(text, max_model_len)
        vision = Qwen2VisionConfig.from_hf(hf.get("vision_config") or {}, fields["hidden_size"])
        return fields | {
            "vision": vision,
            "mrope_section": mrope.sections(text["rope_parameters"], fields["rope"]),
            "image_token": hf_config.optional_count(hf, "image_token_id", 151655, least=0),
            "video_token": hf_config.optional_count(hf, "video_token_id", 151656, least=0),
        }


def _text_fields(hf: hf_config.HfConfig) -> dict[str, Any]:
    """The language model's fields: `text_config` in new files, the top level in old ones."""
    given = hf if hf.get("text_config") is None else hf["text_config"]
    text = {**_TEXT_DEFAULTS, **given, "architectures": hf.get("architectures")}
    text["tie_word_embeddings"] = hf_config.tied(hf, given)
    parameters = rope.rope_parameters(text)
    if parameters["rope_type"] == "mrope":
        parameters["rope_type"] = "default"
    return {**text, "rope_scaling": None, "rope_parameters": parameters}


class Qwen2VL(Qwen2):
    """`Qwen2VLForConditionalGeneration`."""

    config_class: ClassVar[type[LlamaConfig]] = Qwen2VLConfig
    towers: ClassVar[tuple[str, ...]] = ("vision",)
    """Top-level attributes that only `encode` uses."""
    config: Qwen2VLConfig

    def __init__(self, config: Qwen2VLConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        super().__init__(config, dtype=dtype, rngs=rngs)
        self.vision = Qwen2VisionTower(config.vision, dtype=dtype, rngs=rngs)

    def encode(self, inputs: Mapping[str, Array]) -> Float[Array, "F E"]:
        """Features of what `Qwen2VLEncoder.inputs` gives, in order of the pictures."""
        return self.vision(_normalized(inputs), inputs["positions"], inputs["segments"])

    @classmethod
    def encoders(cls, config: Qwen2VLConfig) -> "dict[str, Qwen2VLEncoder]":
        """How media become inputs of `encode`, by kind."""
        vision = config.vision
        encoder = Qwen2VLEncoder(vision.channels, vision.patch_values, vision.merge)
        return {"image": encoder, "video": encoder}

    def _rotary(self, tokens: Int[Array, " T"], batch: TokenBatch | None) -> Rotary:
        if batch is None or batch.rotary_positions is None:  # all three are the same
            return super()._rotary(tokens, batch)
        config = self.config
        return mrope.cos_sin(config.rope, config.mrope_section, batch.rotary_positions)

    @classmethod
    def checkpoint_map(cls, config: LlamaConfig) -> CheckpointMap:
        """Which checkpoint tensor fills which part of which parameter."""
        assert isinstance(config, Qwen2VLConfig)
        text = super().checkpoint_map(config)
        pieces = (*text.pieces, *tower_pieces(config.vision, "visual", "vision"))
        return dataclasses.replace(text, pieces=pieces, canonical=_canonical_name)


def _normalized(inputs: Mapping[str, Array]) -> Float[Array, "N P"]:
    """Patches of pixels, each channel by its own factor and term."""
    factors, terms = inputs["factors"][:, :, None], inputs["terms"][:, :, None]
    pixels = inputs["patches"].reshape(*factors.shape[:2], -1).astype(jnp.float32)
    return (pixels * factors + terms).reshape(inputs["patches"].shape)


def _canonical_name(name: str) -> str:
    """Newer files, and those of the model without its head, name the two parts otherwise."""
    name = re.sub(r"^model\.visual\.", "visual.", name)
    return canonical_name(re.sub(r"^(model\.)?language_model\.", "model.", name))


class PictureLike(Protocol):
    """A picture or video as patches; those that become one feature follow one another."""

    @property
    def patches(self) -> np.ndarray:
        """uint8 [N, P]."""
        ...

    @property
    def factors(self) -> np.ndarray:
        """Float32 [channels]: what a pixel is multiplied by, before `terms` are added."""
        ...

    @property
    def terms(self) -> np.ndarray:
        """Float32 [channels]."""
        ...

    @property
    def grid(self) -> tuple[int, int, int]:
        """Patches along time, height and width; N is their product."""
        ...


class Group(NamedTuple):
    """Frames of a video that share patches, which the tower sees by themselves."""

    patches: np.ndarray
    factors: np.ndarray
    terms: np.ndarray
    grid: tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Qwen2VLEncoder:
    """How pictures become inputs of `encode`, whose shapes depend on `size` alone.

    `size` counts patches, padding included; it must be a multiple of 256.
    """

    channels: int
    patch_values: int
    """Values of a patch."""
    merge: int
    """Patches along an edge of the square that becomes one feature."""

    least: ClassVar[int] = BLOCK
    """The smallest `size`."""

    def parts(self, picture: PictureLike) -> list[Group]:
        """What is encoded apart: the patches of each time."""
        time, height, width = picture.grid
        levels = picture.factors, picture.terms
        each = np.split(picture.patches, time)
        return [Group(patches, *levels, (1, height, width)) for patches in each]

    def units(self, picture: PictureLike) -> int:
        """Patches of a picture."""
        return math.prod(picture.grid)

    def size_for(self, tokens: int) -> int:
        """The smallest size that takes whatever pictures have together `tokens` features."""
        return -(-tokens * self.merge**2 // BLOCK) * BLOCK

    def num_patches(self, size: int) -> int:
        """What the tower works on in a run, for an estimate of its memory."""
        return size

    def num_rows(self, size: int) -> int:
        """F: rows that `encode` gives for `size`."""
        return size // self.merge**2

    def num_tokens(self, picture: PictureLike) -> int:
        """Rows of a picture; pictures' rows stand one after the other, padding last."""
        return math.prod(self.token_grid(picture))

    def token_grid(self, picture: PictureLike) -> mrope.Grid:
        """Rows of a picture along time, height and width, as `mrope.positions` takes them."""
        frames, height, width = picture.grid
        return frames, height // self.merge, width // self.merge

    def abstract(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of `inputs`."""
        return {
            "patches": jax.ShapeDtypeStruct((size, self.patch_values), jnp.uint8),
            "factors": jax.ShapeDtypeStruct((size, self.channels), jnp.float32),
            "terms": jax.ShapeDtypeStruct((size, self.channels), jnp.float32),
            "positions": jax.ShapeDtypeStruct((size, 2), jnp.int32),
            "segments": jax.ShapeDtypeStruct((size,), jnp.int32),
        }

    def inputs(self, pictures: Sequence[PictureLike], size: int) -> dict[str, np.ndarray]:
        """Patches, how each is normalized, its row and column, and its segment: padding is 0, and
        frames count from 1.

        Raises:
            ValueError: the pictures have more than `size` patches, or those are of another size,
                or `size` is not a multiple of 256.
        """
        self._check(pictures, size)
        arrays = {name: np.zeros(s.shape, s.dtype) for name, s in self.abstract(size).items()}
        start = segment = 0
        for picture in pictures:
            frames, height, width = picture.grid
            part = slice(start, start + self.units(picture))
            for name in ("patches", "factors", "terms"):
                arrays[name][part] = getattr(picture, name)
            arrays["positions"][part] = np.tile(self._places(height, width), (frames, 1))
            frame = np.repeat(np.arange(frames), height * width)
            arrays["segments"][part] = segment + 1 + frame
            start, segment = part.stop, segment + frames
        return arrays

    def _check(self, pictures: Sequence[PictureLike], size: int) -> None:
        total = sum(self.units(picture) for picture in pictures)
        if size % BLOCK or total > size:
            raise ValueError(
                f"A run of {size} patches is asked for pictures of {total}; it must have as many, "
                f"and a multiple of {BLOCK}."
            )
        for picture in pictures:
            expected = self.units(picture), self.patch_values
            if picture.patches.shape != expected:
                raise ValueError(
                    f"The patches of a picture of grid {picture.grid} have shape "
                    f"{picture.patches.shape}, but the model takes {expected}. Its "
                    "preprocessor_config.json may belong to another model."
                )

    def _places(self, height: int, width: int) -> np.ndarray:
        """Row and column of each patch of a frame, squares of neighbours one after the other."""
        merge = self.merge
        places = np.indices((height, width))
        places = places.reshape(2, height // merge, merge, width // merge, merge)
        return places.transpose(1, 3, 2, 4, 0).reshape(-1, 2)
