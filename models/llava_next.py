"""LLaVA-NeXT (https://llava-vl.github.io/blog/2024-01-30-llava-next/): pictures in tiles, through
CLIP's tower and a projector of two layers, into Llama or Mistral.

The tower sees the whole of a picture as one square, and a grid of squares of a larger version. Of
the grid, what was padded is cut off, and a learned feature ends each row.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..errors import UnsupportedModelError
from . import hf_config, squares
from .checkpoint_map import CheckpointMap, Piece
from .layers import weight
from .llama import LlamaConfig
from .llava import LLAMA_7B, ClipLlama, LlavaConfig
from .mistral import MistralConfig
from .squares import Size, SquareEncoder, TileEncoder, ended_blend

_MISTRAL_7B = {**LLAMA_7B, "intermediate_size": 14336, "max_position_embeddings": 131072}
_PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlavaNextConfig(LlavaConfig):
    """LLaVA's fields, and those of tiles."""

    texts: ClassVar[Mapping[str, tuple[type[LlamaConfig], Mapping[str, Any]]]] = {
        **LlavaConfig.texts,
        "mistral": (MistralConfig, _MISTRAL_7B),
    }

    pinpoints: tuple[Size, ...]
    """Heights and widths in pixels of which a picture's larger version has one."""

    @property
    def most_tiles(self) -> int:
        """Of a picture: the squares of the largest grid, and the whole."""
        return squares.most_tiles(self.pinpoints, self.vision.image_size)

    @classmethod
    def _fields(cls, hf: hf_config.HfConfig, max_model_len: int | None) -> dict[str, Any]:
        fields = super()._fields(hf, max_model_len)
        if fields["full"]:
            raise UnsupportedModelError(
                "The field 'vision_feature_select_strategy' in the model's config.json is 'full'; "
                "only 'default' is implemented, because a class token has no place in a grid of "
                "tiles. Correct the file."
            )
        side = fields["vision"].image_size
        return fields | {"pinpoints": squares.pinpoints(hf, side, _PINPOINTS)}


class LlavaNext(ClipLlama):
    """`LlavaNextForConditionalGeneration` with Llama or Mistral as its text model."""

    config_class: ClassVar[type[LlamaConfig]] = LlavaNextConfig
    towers: ClassVar[tuple[str, ...]] = (*ClipLlama.towers, "newline")
    """Top-level attributes that only `encode` uses."""

    def __init__(self, config: LlavaNextConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        super().__init__(config, dtype=dtype, rngs=rngs)
        self.newline = weight((config.hidden_size,), ("embed",), dtype=dtype, rngs=rngs)

    def encode(self, inputs: Mapping[str, Array]) -> Float[Array, "F E"]:
        """Features of all pictures of one run of the tower, rows in order of the pictures.

        Args:
            inputs: as `TileEncoder.inputs` makes them.
        """
        rows = self.projector(self._patches(inputs))
        return ended_blend(rows, self.newline[...], inputs)

    def _patches(self, inputs: Mapping[str, Array]) -> Float[Array, "N P V"]:
        """The tower's features of each square, but for that of the class token."""
        return self.vision(inputs["pixels"])[:, 1:]

    @classmethod
    def encoders(cls, config: LlavaNextConfig) -> dict[str, SquareEncoder[Any]]:
        """How the host prepares what `encode` takes, by kind of media."""
        vision = config.vision
        return {"image": TileEncoder(vision.image_size, vision.along, config.most_tiles)}

    @classmethod
    def checkpoint_map(cls, config: LlamaConfig) -> CheckpointMap:
        """As LLaVA's, with the feature that ends rows."""
        mapping = super().checkpoint_map(config)
        newline = Piece("image_newline", "newline")
        return dataclasses.replace(mapping, pieces=(*mapping.pieces, newline))
