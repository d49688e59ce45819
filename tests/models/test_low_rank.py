"""Adapters in slots beside the weights give what adapters merged into the weights give."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from tests.lora.conftest import FIXTURES, load_adapter, load_model
from tests.stacked import stacked

from quire.lora.adapter import merged
from quire.lora.config import read_config
from quire.lora.mapping import EMBED, HEAD
from quire.lora.reader import read_adapter
from quire.models import functional, low_rank
from quire.models.batch import TokenBatch

SLOTS, RANK = 3, 8
NAMES = sorted(folder.name for folder in (FIXTURES / "lora").iterdir())


def stacks(axes: dict[str, Any], shapes: dict[str, Any], adapter: Any, slot: int) -> dict[str, Any]:
    """The arrays of every `LowRank`, with the adapter in one slot and noise in the others."""
    rng = np.random.default_rng(0)
    arrays = {
        name: jnp.asarray(rng.normal(size=shape.shape), jnp.float32)
        for name, shape in shapes.items()
        if name.endswith((".a", ".b"))
    }
    for name in {*axes, HEAD}:
        path = low_rank.path_of(name)
        if f"{path}.a" not in arrays:
            continue
        whole = name if name in shapes else EMBED
        new = stacked(
            adapter.parts.get(name, ()), shapes[whole].shape, axes[whole], RANK, jnp.float32
        )
        a, b = arrays[f"{path}.a"], arrays[f"{path}.b"]
        arrays[f"{path}.a"], arrays[f"{path}.b"] = low_rank.written(
            a, b, jnp.int32(slot), jnp.asarray(new[0]), jnp.asarray(new[1]), axes[whole]
        )
    return arrays


@pytest.mark.parametrize("name", NAMES)
def test_slots_and_merged_weights_agree(name: str) -> None:
    fixture = load_adapter(name)
    model = load_model(fixture.model)
    adapter = read_adapter(
        name, read_config(fixture.fields, name), fixture.tensors, model.base, max_rank=64
    )
    assert adapter.rank <= RANK
    names = {slot.param for module in model.base.modules.values() for slot in module.slots}

    def prepare(made: Any) -> None:
        low_rank.attach(made, names, SLOTS, RANK, jnp.float32)

    graphdef, shapes, axes = functional.abstract(
        model.architecture, model.config, jnp.float32, prepare
    )
    bound = functional.bind(graphdef, model.params | stacks(axes, shapes, adapter, slot=1))
    prompt = jnp.asarray(fixture.prompt)
    size = len(prompt)

    def logits(slots: Any) -> np.ndarray:
        adapters = jnp.asarray(slots, jnp.int32)
        hidden = one_sequence(bound, model.config, prompt, adapters)
        return np.asarray(bound.logits(hidden, adapters))

    found = logits([1] * size)
    np.testing.assert_allclose(
        found, model.logits(merged(model.params, adapter), fixture.prompt), atol=1e-3, rtol=1e-3
    )
    np.testing.assert_allclose(found, fixture.logits, atol=1e-3, rtol=1e-3)
    plain = logits([SLOTS] * size)
    np.testing.assert_allclose(
        plain, model.logits(model.params, fixture.prompt), atol=1e-4, rtol=1e-4
    )
    assert np.abs(found - plain).max() > 0.01


def one_sequence(model: Any, config: Any, tokens: Any, adapters: Any) -> Any:
    """Hidden states of a whole prompt, over pages."""
    size, page = len(tokens), 16
    pages = -(-size // page)
    shape = (pages + 1, page, config.num_kv_heads, config.head_dim)
    cache = tuple((jnp.zeros(shape), jnp.zeros(shape)) for _ in range(config.num_layers))
    index = jnp.arange(size)
    batch = TokenBatch(
        positions=index,
        rows=jnp.zeros(size, jnp.int32),
        write_index=index + page,
        page_table=jnp.arange(1, pages + 1)[None],
        lengths=jnp.array([size]),
        query_starts=jnp.array([0, size]),
        adapters=adapters,
        decode=False,
    )
    return model(tokens, batch, cache)[0]
