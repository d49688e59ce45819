"""Phi-3-vision and Phi-3.5-vision (arXiv:2404.14219): Phi-3 with pictures that CLIP sees in parts.

The tower sees a large version of a picture square by square, and then the whole as one square, as
in InternLM-XComposer2-4KHD (arXiv:2404.06512). Of each 2 x 2 patches one feature is made. Features
stand in the prompt row by row of the large version, then of the whole, a learned separator at the
end of each row and another between the two.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..errors import ModelConfigError, UnsupportedModelError
from . import clip, hf_config
from .checkpoint_map import CheckpointMap, Piece, with_bias
from .clip import VIT_L_14_336, ClipConfig, ClipTower
from .layers import ACTIVATIONS, Linear, weight
from .llama import LlamaConfig, canonical_name
from .phi3 import Phi3, Phi3Config

_IMAGE_TOKEN = 32044
_SIDE, _PATCH = VIT_L_14_336["image_size"], VIT_L_14_336["patch_size"]
_SOURCE = "model.vision_embed_tokens"
_TOWER = f"{_SOURCE}.img_processor.vision_model"
_ONLY: dict[str, dict[str, tuple[Any, Any]]] = {
    "embd_layer": {
        "embedding_cls": ("image", None),
        "projection_cls": ("mlp", "linear"),
        "use_hd_transform": (True, False),
        "with_learnable_separator": (True, False),
        "hd_transform_order": ("sub_glb", "glb_sub"),
    },
    "img_processor": {
        "name": ("clip_vision_model", None),
        "type_feature": ("patch", "patch"),
        "num_img_tokens": (144, None),
    },
}
"""Section of `config.json` and field: the one value that is implemented, and what a missing field
means."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phi3VConfig(Phi3Config):
    """The language model's fields, and the tower's, which files do not hold: it is ViT-L/14 of 336
    pixels but for what a `vision_config` says."""

    vision: ClipConfig
    image_token: int
    """The token that stands where a feature of a picture goes: `image_token_id`, or 32044.

    The tokenizer has none for it: `<|image_1|>` in a prompt is plain text, and the processor that
    comes with the model writes negative numbers instead. They index no embedding and cannot be
    decoded. So `<|image|>` stands in, 32044 in both models, which is for no other use.
    """

    @property
    def along(self) -> int:
        """Features along an edge of a square, each of 2 x 2 patches."""
        return self.vision.image_size // self.vision.patch_size // 2

    @classmethod
    def _fields(cls, hf: hf_config.HfConfig, max_model_len: int | None) -> dict[str, Any]:
        fields = super()._fields(hf, max_model_len)
        image_token = hf_config.optional_count(hf, "image_token_id", _IMAGE_TOKEN, least=0)
        if image_token >= fields["vocab_size"]:
            raise ModelConfigError(
                f"The token for features of pictures is {image_token}, but the vocabulary has "
                f"{fields['vocab_size']} tokens. Set 'image_token_id' in the model's config.json "
                "to a token that prompts do not use otherwise."
            )
        return fields | {"vision": _vision(hf), "image_token": image_token}


def _vision(hf: hf_config.HfConfig) -> ClipConfig:
    embedding, processor = (_section(hf, name) for name in ("embd_layer", "img_processor"))
    _require_only("embd_layer", embedding)
    _require_only("img_processor", processor)
    sizes = {**VIT_L_14_336, **(hf.get("vision_config") or {})}
    layers = hf_config.required_count(sizes, "num_hidden_layers")
    config = ClipConfig.from_hf(sizes, _feature_layer(processor, layers))
    if (config.image_size, config.patch_size) != (_SIDE, _PATCH):
        raise UnsupportedModelError(
            f"The vision_config in the model's config.json has image_size {config.image_size} and "
            f"patch_size {config.patch_size}; only {_SIDE} and {_PATCH} are implemented. Use a "
            "model whose tower sees such squares."
        )
    if hf_config.required_count(processor, "image_dim_out") != config.hidden_size:
        raise ModelConfigError(
            f"The field 'img_processor.image_dim_out' in the model's config.json is "
            f"{processor['image_dim_out']}, but the tower's hidden size is {config.hidden_size}; "
            "they must be the same. Correct the file, or its vision_config."
        )
    return config


def _section(hf: hf_config.HfConfig, name: str) -> Mapping[str, Any]:
    if not isinstance(section := hf.get(name), Mapping):
        raise ModelConfigError(
            f"The field {name!r} in the model's config.json is {section!r}; it must be an object "
            f"with {', '.join(_ONLY[name])}. Take the config.json that belongs to the checkpoint."
        )
    return section


def _require_only(name: str, section: Mapping[str, Any]) -> None:
    for field, (only, missing) in _ONLY[name].items():
        given = missing if section.get(field) is None else section[field]
        if given != only:
            raise UnsupportedModelError(
                f"The field '{name}.{field}' in the model's config.json is {given!r}; only "
                f"{only!r} is implemented. Use a model such as Phi-3.5-vision-instruct."
            )


def _feature_layer(processor: Mapping[str, Any], layers: int) -> int:
    """Which hidden state of the tower is taken, the input of the first layer being 0."""
    given = -2 if processor.get("layer_idx") is None else processor["layer_idx"]
    if type(given) is not int or not -layers - 1 <= given <= layers:
        raise ModelConfigError(
            f"The field 'img_processor.layer_idx' in the model's config.json is {given!r}; it must "
            f"be an integer from {-layers - 1} to {layers}, because the tower has {layers} layers. "
            "Correct the file."
        )
    return given


class Projector(nnx.Module):
    """Joins 2 x 2 patches, and maps them and the separators to the width of the text."""

    def __init__(self, config: Phi3VConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        joined, size = 4 * config.vision.hidden_size, config.hidden_size
        make = {"dtype": dtype, "rngs": rngs}
        self.separators = weight((2, joined), ("separators", "vision_embed"), **make)
        self.up = Linear(joined, size, ("mlp", "vision_embed"), bias=True, **make)
        self.down = Linear(size, size, ("embed", "mlp"), bias=True, **make)
        self.along = config.along

    @jax.named_scope("projector")
    def __call__(self, patches: Float[Array, "N P C"]) -> Float[Array, "N*P/4+2 E"]:
        """One row of each 2 x 2 patches, square by square; then what ends a row of features, and
        what stands between the large version and the whole.

        Args:
            patches: of N squares, row by row.
        """
        along, size = self.along, patches.shape[-1]
        x = patches.reshape(-1, along, 2, along, 2, size).transpose(0, 1, 3, 2, 4, 5)
        x = jnp.concatenate([x.reshape(-1, 4 * size), self.separators[...]])
        return self.down(ACTIVATIONS["gelu"](self.up(x)))


class Phi3V(Phi3):
    """`Phi3VForCausalLM`."""

    config_class: ClassVar[type[LlamaConfig]] = Phi3VConfig
    towers: ClassVar[tuple[str, ...]] = ("vision", "projector")
    """Top-level attributes that only `encode` uses."""
    config: Phi3VConfig

    def __init__(self, config: Phi3VConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        super().__init__(config, dtype=dtype, rngs=rngs)
        self.vision = ClipTower(config.vision, dtype=dtype, rngs=rngs)
        self.projector = Projector(config, dtype=dtype, rngs=rngs)

    def encode(self, inputs: Mapping[str, Array]) -> Float[Array, "F E"]:
        """Features of what `Phi3VEncoder.inputs` gives, in order of the pictures."""
        rows = self.projector(self.vision(inputs["crops"])[:, 1:])
        return rows.at[inputs["order"]].get(mode="clip")

    @classmethod
    def encoders(cls, config: Phi3VConfig) -> "dict[str, Phi3VEncoder]":
        """How media become inputs of `encode`, by kind."""
        return {"image": Phi3VEncoder(config.vision.image_size, config.along)}

    @classmethod
    def checkpoint_map(cls, config: LlamaConfig) -> CheckpointMap:
        """Which checkpoint tensor fills which part of which parameter."""
        assert isinstance(config, Phi3VConfig)
        text = super().checkpoint_map(config)
        pieces = [*text.pieces, *clip.pieces(config.vision, _TOWER, "vision")]
        for index, name in enumerate(("sub_GN", "glb_GN")):
            pieces.append(Piece(f"{_SOURCE}.{name}", "projector.separators", index))
        for tensor, name in (("0", "up"), ("2", "down")):
            pieces += with_bias(f"{_SOURCE}.img_projection.{tensor}", f"projector.{name}")
        # the module of pictures holds the embedding of tokens too: some files have it twice
        again = rf"{re.escape(_SOURCE)}\.wte\.weight"
        ignored = (*text.ignored, *clip.ignored(config.vision, _TOWER), again)
        return CheckpointMap(tuple(pieces), ignored, _canonical_name)


def _canonical_name(name: str) -> str:
    """Files of the bare model lack the prefix `model.`, and of newer towers `vision_model.`."""
    name = re.sub(r"^vision_embed_tokens\.", f"{_SOURCE}.", canonical_name(name))
    return re.sub(rf"^{re.escape(_SOURCE)}\.img_processor\.(?!vision_model\.)", f"{_TOWER}.", name)


class PictureLike(Protocol):
    """A picture as squares."""

    @property
    def crops(self) -> np.ndarray:
        """Float32 [1 + rows * columns, 3, side, side]: the whole, then squares row by row."""
        ...

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the large version in pixels, multiples of a square's side."""
        ...


@dataclasses.dataclass(frozen=True)
class Phi3VEncoder:
    """How pictures become inputs of `encode`, whose shapes depend on `size` alone.

    `size` counts crops, padding included: the squares of each picture, and one of the whole.
    """

    side: int
    """Pixels along an edge of a square."""
    along: int
    """Features along an edge of a square."""

    least: ClassVar[int] = 4
    """The smallest `size`."""

    def units(self, picture: PictureLike) -> int:
        """Crops of a picture, at least 2."""
        return len(picture.crops)

    def size_for(self, tokens: int) -> int:
        """The smallest size that takes whatever pictures have together `tokens` features."""
        return max(tokens // self.along**2, self.least)

    def num_patches(self, size: int) -> int:
        """What the tower works on in a run, for an estimate of its memory."""
        return size * (4 * self.along**2 + 1)

    def num_rows(self, size: int) -> int:
        """F: rows that `encode` gives for `size`, enough whatever the pictures.

        The most separators end rows of pictures one square wide: `along` for each crop, the whole
        included. A picture has one more, and there are at most size // 2 pictures.
        """
        return size * self.along * (self.along + 1) + size // 2

    def num_tokens(self, picture: PictureLike) -> int:
        """Rows of a picture; pictures' rows stand one after the other, padding last."""
        return len(self._order(picture, 0, 0))

    def abstract(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of `inputs`."""
        return {
            "crops": jax.ShapeDtypeStruct((size, 3, self.side, self.side), jnp.float32),
            "order": jax.ShapeDtypeStruct((self.num_rows(size),), jnp.int32),
        }

    def inputs(self, pictures: Sequence[PictureLike], size: int) -> dict[str, np.ndarray]:
        """Crops, and which row of the `Projector` each feature is; padding is a separator.

        Raises:
            ValueError: the pictures have more than `size` crops, or those are of another size.
        """
        self._check(pictures, size)
        arrays = {name: np.zeros(s.shape, s.dtype) for name, s in self.abstract(size).items()}
        crops, order = arrays["crops"], arrays["order"]
        order[:] = end = size * self.along**2
        crop = row = 0
        for picture in pictures:
            rows = self._order(picture, crop, end)
            order[row : row + len(rows)] = rows
            crops[crop : crop + len(picture.crops)] = picture.crops
            crop, row = crop + len(picture.crops), row + len(rows)
        return arrays

    def _order(self, picture: PictureLike, crop: int, end: int) -> np.ndarray:
        """The row of the `Projector` that each feature of a picture is.

        Args:
            crop: the number of the picture's first.
            end: the row of the separator that ends rows of features; the other follows it.
        """
        along, count = self.along, self.along**2
        rows, columns = self._grid(picture)
        features = np.arange((1 + rows * columns) * count) + crop * count
        whole, squares = features[:count], features[count:]
        squares = squares.reshape(rows, columns, along, along).swapaxes(1, 2)
        large, whole = (
            np.pad(grid, ((0, 0), (0, 1)), constant_values=end).reshape(-1)
            for grid in (squares.reshape(rows * along, -1), whole.reshape(along, along))
        )
        return np.concatenate([large, [end + 1], whole])

    def _grid(self, picture: PictureLike) -> tuple[int, int]:
        """Rows and columns of squares."""
        return picture.size[0] // self.side, picture.size[1] // self.side

    def _check(self, pictures: Sequence[PictureLike], size: int) -> None:
        total = sum(self.units(picture) for picture in pictures)
        if total > size:
            raise ValueError(
                f"A run of {size} crops is asked for pictures of {total}; it must have as many."
            )
        for picture in pictures:
            rows, columns = self._grid(picture)
            expected = 1 + rows * columns, 3, self.side, self.side
            if picture.crops.shape != expected:
                raise ValueError(
                    f"The crops of a picture of {picture.size[0]} x {picture.size[1]} pixels have "
                    f"shape {picture.crops.shape}, but the model takes {expected}."
                )
