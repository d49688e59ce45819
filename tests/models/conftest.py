"""The fixture models, a tiny loader, and a paged cache driven by hand."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from quire.models import functional, registry
from quire.models.batch import TokenBatch
from quire.models.features import Features

FOLDER = Path(__file__).resolve().parent.parent / "fixtures" / "models"
PAGE = 4
ROWS = 4


@dataclasses.dataclass(frozen=True)
class Sample:
    """A prompt, the reference logits of its tokens, and the tokens greedy decoding adds."""

    prompt: np.ndarray
    logits: np.ndarray
    greedy: np.ndarray


@dataclasses.dataclass(frozen=True)
class ReferenceModel:
    """A fixture checkpoint as the project loads it, with what `transformers` computes."""

    config: Any
    graphdef: Any
    params: dict[str, jax.Array]
    samples: tuple[Sample, ...]


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def fill_params(
    shapes: Mapping[str, jax.ShapeDtypeStruct], tensors: Mapping[str, np.ndarray], mapping: Any
) -> dict[str, np.ndarray]:
    """Parameters from the tensors of a checkpoint; fails unless each element is filled once."""
    tensors = {mapping.canonical(name): tensor for name, tensor in tensors.items()}
    params = {name: np.zeros(shape.shape, np.float32) for name, shape in shapes.items()}
    times = {name: np.zeros(shape.shape, np.int32) for name, shape in shapes.items()}
    for piece in mapping.pieces:
        tensor = tensors[piece.tensor]
        tensor = tensor if piece.rows is None else tensor[piece.rows]
        params[piece.param][piece.index] = tensor.reshape(params[piece.param][piece.index].shape)
        times[piece.param][piece.index] += 1
    assert all((count == 1).all() for count in times.values())
    unused = tensors.keys() - {piece.tensor for piece in mapping.pieces}
    assert [name for name in unused if not mapping.is_ignored(name)] == []
    return params


def load_checkpoint(
    cls: Any, config: Any, folder: Path, dtype: Any = jnp.float32
) -> tuple[Any, dict[str, jax.Array]]:
    """The definition and the parameters of the model in a folder."""
    graphdef, shapes, _ = functional.abstract(cls, config, dtype)
    tensors = load_file(folder / "model.safetensors")
    params = fill_params(shapes, tensors, cls.checkpoint_map(config))
    return graphdef, {name: jnp.asarray(array, dtype) for name, array in params.items()}


@functools.cache
def load_reference(name: str) -> ReferenceModel:
    hf, expected = read_json(FOLDER / name / "config.json"), np.load(FOLDER / name / "expected.npz")
    cls = registry.resolve(hf)
    config = cls.config_class.from_hf(hf, int(expected["max_model_len"]) or None)
    graphdef, params = load_checkpoint(cls, config, FOLDER / name)
    samples = tuple(
        Sample(expected[f"prompt_{i}"], expected[f"logits_{i}"], expected[f"greedy_{i}"])
        for i in range(2)
    )
    return ReferenceModel(config, graphdef, params, samples)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def forward(
    graphdef: Any,
    params: dict[str, jax.Array],
    batch: TokenBatch | None,
    cache: Any,
    tokens: jax.Array,
    *features: Features | None,
) -> tuple[jax.Array, Any]:
    """Logits of the tokens, and the cache; `features` for models that see."""
    model = functional.bind(graphdef, params)
    hidden, cache = model(tokens, batch, cache, *features)
    return model.logits(hidden), cache


@functools.partial(jax.jit, static_argnums=0)
def encode(graphdef: Any, params: dict[str, jax.Array], inputs: dict[str, Any]) -> jax.Array:
    """Features of one run of the tower."""
    return functional.bind(graphdef, params).encode(inputs)


def features_of(rows: np.ndarray, index: np.ndarray) -> Features:
    return Features(jnp.asarray(rows, jnp.float32), jnp.asarray(index, jnp.int32))


class PagedModel:
    """A model over a pool full of NaN, with ROWS rows whose pages are scattered."""

    def __init__(self, reference: ReferenceModel) -> None:
        self.reference = reference
        config = reference.config
        columns = -(-config.max_model_len // PAGE)
        shape = (ROWS * columns + 1, PAGE, config.num_kv_heads, config.head_dim)
        pool = np.full(shape, np.nan, np.float32)
        pool[0] = 0
        self.cache = tuple((jnp.asarray(pool), jnp.array(pool)) for _ in range(config.num_layers))
        pages = np.random.default_rng(0).permutation(ROWS * columns) + 1
        self.page_table = pages.reshape(ROWS, columns).astype(np.int32)
        self.lengths = np.zeros(ROWS, np.int32)

    def step(self, chunks: list[np.ndarray], size: int | None = None) -> list[np.ndarray]:
        """Appends chunk r to row r and gives its logits; `size` pads to a mixed step's tokens.

        Without `size` it is a decode step, of one token a row.
        """
        batch, tokens = self._batch([*chunks, *[np.zeros(0, int)] * (ROWS - len(chunks))], size)
        logits, self.cache = forward(
            self.reference.graphdef, self.reference.params, batch, self.cache, tokens
        )
        ends = np.cumsum([len(chunk) for chunk in chunks])
        return np.split(np.asarray(logits)[: ends[-1]], ends[:-1])

    def _batch(self, chunks: list[np.ndarray], size: int | None) -> tuple[TokenBatch, jax.Array]:
        counts = np.asarray([len(chunk) for chunk in chunks], np.int64)
        rows = np.repeat(np.arange(ROWS), counts)
        starts = np.concatenate([[0], np.cumsum(counts)])
        positions = np.arange(len(rows)) - starts[rows] + self.lengths[rows]
        write = self.page_table[rows, positions // PAGE] * PAGE + positions % PAGE
        self.lengths = np.where(counts > 0, self.lengths + counts, self.lengths).astype(np.int32)
        padding = (size or ROWS) - len(rows)

        def padded(values: np.ndarray, value: int) -> jax.Array:
            return jnp.asarray(np.pad(values, (0, padding), constant_values=value), jnp.int32)

        batch = TokenBatch(
            positions=padded(positions, 0),
            rows=padded(rows, ROWS - 1) if size else jnp.arange(ROWS, dtype=jnp.int32),
            write_index=padded(write, 0),
            page_table=jnp.asarray(self.page_table),
            lengths=jnp.asarray(np.where(counts > 0, self.lengths, 0), jnp.int32),
            query_starts=jnp.asarray(starts, jnp.int32),
            decode=size is None,
        )
        return batch, padded(np.concatenate(chunks), 0)


class PagedFeatures(PagedModel):
    """Prompts with pictures or sounds, whose features are all in one array."""

    def __init__(
        self,
        reference: ReferenceModel,
        prompts: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]],
        chunk: int,
    ) -> None:
        """Of each prompt its tokens, its features, and the row of each token.

        Args:
            chunk: tokens of a row in one step.
        """
        super().__init__(reference)
        self.chunk = chunk
        self.tokens, rows, index = zip(*prompts, strict=True)
        self.rows = np.concatenate(rows)
        self.index: list[np.ndarray] = []
        for start, own, places in zip(np.cumsum([0, *map(len, rows)]), rows, index, strict=False):
            self.index.append(np.where(places < len(own), places + start, len(self.rows)))

    def fill(self) -> list[np.ndarray]:
        """Logits of the prompts, one a row, in chunks side by side."""
        logits: list[list[np.ndarray]] = [[] for _ in self.tokens]
        for start in range(0, max(map(len, self.tokens)), self.chunk):
            part = slice(start, start + self.chunk)
            index = np.concatenate([places[part] for places in self.index])
            size = self.chunk * ROWS
            index = np.pad(index, (0, size - len(index)), constant_values=len(self.rows))
            chunks = [tokens[part] for tokens in self.tokens]
            empty = [np.zeros(0, int)] * (ROWS - len(chunks))
            batch, tokens = self._batch([*chunks, *empty], size)
            args = batch, self.cache, tokens, features_of(self.rows, index)
            out, self.cache = forward(self.reference.graphdef, self.reference.params, *args)
            ends = np.cumsum([len(chunk) for chunk in chunks])
            for kept, new in zip(logits, np.split(out[: ends[-1]], ends[:-1]), strict=True):
                kept.append(np.asarray(new))
        return [np.concatenate(parts) for parts in logits]


@pytest.fixture
def reference_model() -> Callable[[str], ReferenceModel]:
    return load_reference


@pytest.fixture
def paged() -> Callable[[str], PagedModel]:
    return lambda name: PagedModel(load_reference(name))


@pytest.fixture
def hf_fields() -> Callable[[str], dict[str, Any]]:
    """The config.json of a fixture, as a fresh dict."""
    return lambda name: read_json(FOLDER / name / "config.json")
