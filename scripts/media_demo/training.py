"""Trains a model on the answers of dialogues about media, with Quire's own definition of it."""

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from quire.models import functional
from quire.models.features import Features

from .folder import Params
from .rows import FLAG, Rows

CALL = 20
"""Steps in one call of the device."""
PEAK, LAST = 1.5e-3, 1.5e-5
"""The highest learning rate and the last one."""
WARM = 1 / 12
"""The share of the training in which the rate rises."""


def decayed(params: Any) -> dict[str, bool]:
    """Of all parameters, whether they are matrices."""
    return {name: value.ndim > 1 for name, value in params.items()}


OPTIMIZER = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.scale_by_adam(b1=0.9, b2=0.98),
    optax.add_decayed_weights(0.05, mask=decayed),
)
"""AdamW, but for the rate."""

State = tuple[Params, optax.OptState]
Loss = Callable[[Params, Any, Array], Float[Array, ""]]
"""Of parameters, data on the device, and the key of a step."""
Encode = Callable[[Any], Sequence[tuple[int, Float[Array, "F E"]]]]
"""Of a model: placeholder tokens of a batch, and the features that they stand for, in order."""


def draw_rows(
    key: Array, groups: Sequence[Rows], counts: Sequence[int]
) -> tuple[Int[Array, "N L"], list[Int[Array, "n media"]]]:
    """So many random rows of each group: flagged tokens, and by group the media's numbers."""
    tokens, media = [], []
    keys = jax.random.split(key, len(counts))
    for row_key, rows, count in zip(keys, groups, counts, strict=True):
        chosen = jax.random.randint(row_key, (count,), 0, rows.tokens.shape[0])
        tokens.append(jnp.asarray(rows.tokens)[chosen].astype(jnp.int32))
        media.append(jnp.asarray(rows.media)[chosen])
    return jnp.concatenate(tokens), media


def expanded(
    rows: Int[Array, "N K"], counts: Mapping[int, Int[Array, " media"]], length: int
) -> Int[Array, "N {length}"]:
    """Rows with each placeholder as many times as its medium has features, zeros behind them.

    Args:
        counts: by placeholder token, those of the media of all rows in their order.
    """
    times = jnp.ones_like(rows)
    for token, features in counts.items():
        here = rows == token
        times = jnp.where(here, features.at[numbered(here)].get(mode="clip"), times)
    ends = jnp.cumsum(times, axis=1)
    place = jnp.arange(length, dtype=ends.dtype)
    source = jnp.sum(ends[:, None, :] <= place[None, :, None], axis=2)
    row = jnp.arange(len(rows))[:, None]
    return rows.at[row, source].get(mode="fill", fill_value=0)


def packed(counts: Int[Array, " media"], most: int) -> tuple[Int[Array, " F"], Int[Array, " F"]]:
    """Of features that stand one after the other, `counts` of each medium: which medium each is
    of, and its place there. There are `most` for each medium; those that are too many come last.
    """
    starts = jnp.cumsum(counts) - counts
    place = jnp.arange(len(counts) * most, dtype=counts.dtype)
    medium = jnp.searchsorted(starts, place, side="right") - 1
    return medium, place - starts[medium]


def hidden_states(model: Any, tokens: Int[Array, "N L"], encode: Encode) -> Float[Array, "N L E"]:
    """States of the tokens, the n-th placeholder of the batch replaced by the n-th feature."""
    encoded = encode(model)
    features = jnp.concatenate([rows for _, rows in encoded])
    index, start = jnp.full(tokens.shape, len(features), jnp.int32), 0
    for token, rows in encoded:
        here = tokens == token
        index = jnp.where(here, start + numbered(here), index)
        start += len(rows)

    def one(tokens: Array, index: Array) -> Array:
        return model(tokens, features=Features(features, index))[0]

    return jax.vmap(one)(tokens, index)


def numbered(here: Bool[Array, "N L"]) -> Int[Array, "N L"]:
    """How many are true before each place, row by row."""
    return jnp.cumsum(here, dtype=jnp.int32).reshape(here.shape) - 1


def answer_loss(
    graphdef: nnx.GraphDef[Any],
    wide: Sequence[str],
    params: Params,
    rows: Int[Array, "N L"],
    encode: Encode,
) -> Float[Array, ""]:
    """The mean cross-entropy of the answers' tokens in flagged rows.

    Matrix products are in bfloat16.

    Args:
        wide: weights that stay in float32, as do the residual streams that begin with them.
    """
    tokens, written = rows % FLAG, rows[:, 1:] // FLAG
    half = {name: value.astype(jnp.bfloat16) for name, value in params.items()}
    body = functional.bind(graphdef, half | {name: params[name] for name in wide})
    hidden = hidden_states(body, tokens, encode)
    scores = functional.bind(graphdef, half).logits(hidden[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(scores, tokens[:, 1:])
    return jnp.sum(losses * written) / jnp.sum(written)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def train_steps(
    loss: Loss, state: State, data: Any, keys: Array, rate: Float[Array, ""]
) -> tuple[State, Float[Array, " K"]]:
    """A step for each of K keys; the new state and the loss of each. Donates `state`."""

    def step(state: State, key: Array) -> tuple[State, Array]:
        params, moments = state
        value, gradient = jax.value_and_grad(loss)(params, data, key)
        updates, moments = OPTIMIZER.update(gradient, moments, params)
        return (jax.tree.map(lambda p, u: p - rate * u, params, updates), moments), value

    return jax.lax.scan(step, state, keys)


def rate_at(done: float) -> float:
    """The learning rate when this share of the training is over: a short rise, then a cosine."""
    if done < WARM:
        return PEAK * done / WARM
    return LAST + (PEAK - LAST) * (1 + math.cos(math.pi * (done - WARM) / (1 - WARM))) / 2


def train(loss: Loss, params: Params, data: Any, key: Array, until: float) -> Params:
    """The weights that a training gives which ends at a time; prints the loss now and then.

    The learning rate falls with the time that is over.

    Args:
        data: numpy arrays, which go to the device once.
        until: on `time.monotonic`'s clock.
    """
    state: State = (params, OPTIMIZER.init(params))
    data = jax.tree.map(jnp.asarray, data)
    began, call, losses = math.inf, 0, jnp.zeros(0)
    while (now := time.monotonic()) < until:
        done = max(0.0, now - began) / (until - began) if began < until else 0.0
        keys = jax.random.split(jax.random.fold_in(key, call), CALL)
        last = losses
        state, losses = train_steps(loss, state, data, keys, jnp.float32(rate_at(done)))
        last.block_until_ready()  # one call is always waiting, and the clock is not far ahead
        if call == 1:
            began = time.monotonic()  # all is compiled
        if call % 10 == 1:
            print(
                f"{until - now:6.1f} s left, step {call * CALL} loss {last.mean():.4f}", flush=True
            )
        call += 1
    return state[0]


def scaled(params: Mapping[str, Array], wide: Sequence[str]) -> Params:
    """Random weights of `init_random`, of which matrices give about as much as they are given."""
    return {
        name: value / (0.02 * math.sqrt(value.shape[-1]))
        if value.ndim > 1 and name not in wide and not name.endswith("_bias")
        else value
        for name, value in params.items()
    }


def sines(places: Float[Array, " N"], size: int, slowest: float) -> Float[Array, "N {size}"]:
    """Positions as sines and cosines, half of each, that grow by one from place to place, or by
    less, down to 1 / `slowest`. Models that begin with them soon tell what is where."""
    speeds = slowest ** -jnp.linspace(0.0, 1.0, size // 2)
    angles = places[:, None] * speeds[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)
