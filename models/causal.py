"""Whole sequences through a model without a KV pool, for training and tests."""

from typing import Protocol

import jax
from jaxtyping import Array, Float, Int


class CausalModel(Protocol):
    """What every architecture offers."""

    def __call__(self, tokens: Array) -> tuple[Array, object]: ...
    def logits(self, hidden: Array) -> Array: ...


def causal_logits(model: CausalModel, tokens: Int[Array, "B T"]) -> Float[Array, "B T V"]:
    """float32 scores of the token after each one. Differentiable in the model's weights."""
    hidden = jax.vmap(lambda sequence: model(sequence)[0])(tokens)
    return model.logits(hidden)
