"""Every architecture and variant against what `transformers` computes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quire.models import functional
from quire.models.causal import causal_logits

VARIANTS = sorted(
    path.name for path in (Path(__file__).parent.parent / "fixtures" / "models").iterdir()
)
TOLERANCE = 2e-4


def test_every_variant_has_a_fixture() -> None:
    assert len(VARIANTS) == 16


@pytest.mark.parametrize("name", VARIANTS)
def test_causal_form_agrees(name: str, reference_model: Callable[[str], Any]) -> None:
    model = reference_model(name)
    longest = max(len(sample.prompt) for sample in model.samples)
    tokens = np.zeros((len(model.samples), longest), np.int32)
    for row, sample in zip(tokens, model.samples, strict=True):
        row[: len(sample.prompt)] = sample.prompt

    @jax.jit
    def run(params: dict[str, jax.Array]) -> jax.Array:
        return causal_logits(functional.bind(model.graphdef, params), jnp.asarray(tokens))

    for logits, sample in zip(run(model.params), model.samples, strict=True):
        assert np.abs(logits[: len(sample.prompt)] - sample.logits).max() < TOLERANCE


@pytest.mark.parametrize("name", VARIANTS)
def test_paged_cache_agrees(name: str, paged: Callable[[str], Any]) -> None:
    """One prompt in one chunk, the other in two beside it, then decode to the reference tokens."""
    model = paged(name)
    short, long = model.reference.samples
    [short_logits, first] = model.step([short.prompt, long.prompt[:18]], 32)
    output = [[short_logits[-1].argmax()], []]
    [next_logits, second] = model.step([np.asarray(output[0]), long.prompt[18:]], 32)
    output[0].append(next_logits[-1].argmax())
    output[1].append(second[-1].argmax())
    assert np.abs(short_logits - short.logits).max() < TOLERANCE
    assert np.abs(np.concatenate([first, second]) - long.logits).max() < TOLERANCE

    while len(output[1]) < len(long.greedy):
        chunks = [np.asarray([tokens[-1]]) for tokens in output]
        for tokens, logits in zip(output, model.step(chunks), strict=True):
            tokens.append(logits[-1].argmax())
    assert output[0][: len(short.greedy)] == short.greedy.tolist()
    assert output[1] == long.greedy.tolist()


@pytest.mark.parametrize("name", ["llama_bias", "qwen3", "phi3", "opt_350m"])
def test_gradients_are_finite_and_reach_every_parameter(
    name: str, reference_model: Callable[[str], Any]
) -> None:
    model = reference_model(name)
    tokens = jnp.asarray(model.samples[1].prompt)[None]

    @jax.jit
    @jax.grad
    def gradient(params: dict[str, jax.Array]) -> jax.Array:
        logits = causal_logits(functional.bind(model.graphdef, params), tokens)
        return -jnp.take_along_axis(
            jax.nn.log_softmax(logits[:, :-1]), tokens[:, 1:, None], axis=-1
        ).mean()

    for name, array in gradient(model.params).items():
        assert jnp.isfinite(array).all(), name
        assert jnp.any(array != 0), name
