"""A model as a static graph definition and a flat dict of arrays, and back.

The dict maps a dotted path to an array: `{"layers.3.attention.qkv": ...}`.
"""

import functools
import zlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
from flax import nnx
from jax.sharding import Sharding
from jax.typing import DTypeLike
from jaxtyping import Array

from . import shards
from .layers import INITIALIZERS, Axes

Params = dict[str, Array]
LayerCache = tuple[Array, Array]
T = TypeVar("T")


def _named_variables(state: nnx.State[Any, Any]) -> list[tuple[str, nnx.Param[Any]]]:
    return [(".".join(map(str, path)), leaf) for path, leaf in nnx.to_flat_state(state)]


def _path(name: str) -> tuple[str | int, ...]:
    return tuple(int(part) if part.isdigit() else part for part in name.split("."))


def split(model: nnx.Module) -> tuple[nnx.GraphDef[Any], Params]:
    """The hashable graph definition of `model`, and its parameters, shared rather than copied."""
    graphdef, state = nnx.split(model)
    return graphdef, {name: leaf.get_value() for name, leaf in _named_variables(state)}


def bind(graphdef: nnx.GraphDef[Any], params: Mapping[str, Any]) -> Any:
    """The model with `params` as its weights. Inverse of `split`; cheap inside a trace."""
    return nnx.merge(graphdef, nnx.from_flat_state([(_path(n), a) for n, a in params.items()]))


def _abstract_state(
    model_cls: type,
    config: Any,
    dtype: DTypeLike,
    prepare: Callable[[Any], None] = lambda _: None,
) -> tuple[Any, nnx.State]:
    def make() -> Any:
        model = model_cls(config, dtype=dtype, rngs=nnx.Rngs(0))
        prepare(model)
        return model

    return nnx.split(nnx.eval_shape(make))


def abstract(
    model_cls: type,
    config: Any,
    dtype: DTypeLike,
    prepare: Callable[[Any], None] = lambda _: None,
) -> tuple[nnx.GraphDef[Any], dict[str, jax.ShapeDtypeStruct], dict[str, Axes]]:
    """What `split` would give of a new model, without its memory.

    Args:
        prepare: called with the model, to add to it.

    Returns:
        The graph definition, the shape and type of every parameter, and its logical axes.
    """
    graphdef, state = _abstract_state(model_cls, config, dtype, prepare)
    variables = _named_variables(state)
    shapes = {name: leaf.get_value() for name, leaf in variables}
    return graphdef, shapes, {name: leaf.get_metadata()["axes"] for name, leaf in variables}


@functools.partial(jax.jit, static_argnums=0)
def _call(graphdef: nnx.GraphDef[Any], params: Params, *args: Any) -> Any:
    return bind(graphdef, params)(*args)


def run_layer(layer: nnx.Module, *args: Any) -> Any:
    """layer(*args) through one `jax.jit`: layers of equal structure trace and compile once."""
    return _call(*split(layer), *args)


def run_layers(
    layers: Iterable[nnx.Module],
    x: T,
    cache: tuple[LayerCache, ...] | None,
    *args: Any,
) -> tuple[T, tuple[LayerCache, ...] | None]:
    """Runs x, cache = layer(x, cache, *args) down the layers, each with its part of the cache."""
    if cache is None:
        for layer in layers:
            x, _ = run_layer(layer, x, None, *args)
        return x, None
    written = []
    for layer, layer_cache in zip(layers, cache, strict=True):
        x, layer_cache = run_layer(layer, x, layer_cache, *args)
        written.append(layer_cache)
    return x, tuple(written)


def init_random(
    model_cls: type,
    config: Any,
    dtype: DTypeLike,
    key: Array,
    sharding: Sharding | Mapping[str, Sharding] | None = None,
) -> Params:
    """Random weights, made on the device one parameter at a time.

    Matrices are normal with standard deviation 0.02, norms 1 and biases 0. A weight depends on
    `key` and its name only, whatever the sharding and the copies of KV heads.

    Args:
        sharding: one for all parameters or one for each by name; None is the default device.
    """
    _, state = _abstract_state(model_cls, config, dtype)
    recipes = {}
    for name, leaf in _named_variables(state):
        shape, metadata = leaf.get_value(), leaf.get_metadata()
        where = sharding[name] if isinstance(sharding, Mapping) else sharding
        copies = config.kv_copies if shards.has_copies(metadata["axes"]) else 1
        recipes[name] = metadata["init"], shape.shape, shape.dtype, where, copies
    with ThreadPoolExecutor() as threads:  # compiling them one by one takes seconds on a GPU
        list(threads.map(lambda recipe: _initializer(*recipe), dict.fromkeys(recipes.values())))
    return {
        name: _initializer(*recipe)(jax.random.fold_in(key, zlib.crc32(name.encode())))
        for name, recipe in recipes.items()
    }


@functools.lru_cache(maxsize=128)
def _initializer(
    init: str, shape: tuple[int, ...], dtype: DTypeLike, sharding: Sharding | None, copies: int
) -> Callable[[Array], Array]:
    key = jax.eval_shape(lambda: jax.random.key(0))
    shape = shards.shape_without_copies(shape, copies)

    def make(key: Array) -> Array:
        return shards.with_copies(INITIALIZERS[init](key, shape, dtype), copies)

    return jax.jit(make, out_shardings=sharding).lower(key).compile()
