"""What encoders make of pictures, as rows that stand where the prompt has placeholder tokens."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def is_in_tower(architecture: type[Any], path: str) -> bool:
    """Whether the parameter at a dotted path is one that only `encode` uses."""
    return path.partition(".")[0] in getattr(architecture, "towers", ())


class Features(NamedTuple):
    """Rows of the language model's width, and which of T tokens they stand for."""

    rows: Float[Array, "F E"]
    index: Int[Array, " T"]
    """The row of each token; F or more for a token that keeps its own embedding."""

    def over(self, x: Float[Array, "T E"]) -> Float[Array, "T E"]:
        """The embeddings x, with rows in their place."""
        rows = self.rows.astype(x.dtype).at[self.index].get(mode="fill", fill_value=0)
        return jnp.where((self.index < self.rows.shape[0])[:, None], rows, x)
