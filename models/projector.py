"""The two layers of LLaVA-1.5 (arXiv:2310.03744) between a tower's features and a text model."""

from collections.abc import Iterator

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from .checkpoint_map import Piece
from .layers import ACTIVATIONS, Linear


class Projector(nnx.Module):
    """From features of the tower to embeddings of the text."""

    def __init__(
        self,
        inner: int,
        size: int,
        activation: str,
        *,
        bias: bool,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        make = {"bias": bias, "dtype": dtype, "rngs": rngs}
        self.up = Linear(inner, size, ("mlp", "vision_embed"), **make)
        self.down = Linear(size, size, ("embed", "mlp"), **make)
        self.activation = activation

    @jax.named_scope("projector")
    def __call__(self, x: Float[Array, "*N V"]) -> Float[Array, "*N E"]:
        return self.down(ACTIVATIONS[self.activation](self.up(x)))


def pieces(bias: bool) -> Iterator[Piece]:
    """Of `multi_modal_projector` in a checkpoint, for the attribute `projector`."""
    for tensor, param in (("linear_1", "up"), ("linear_2", "down")):
        for kind in ("weight", "bias") if bias else ("weight",):
            yield Piece(f"multi_modal_projector.{tensor}.{kind}", f"projector.{param}.{kind}")
