"""Trains the vision demo on drawings and questions made for it: four minutes on an H200.

PYTHONPATH=src python -m scripts.vision_demo.train --out models/vision_demo
"""

import argparse
import functools
import math
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from quire.models import functional
from quire.models.features import Features
from quire.models.llava import Llava

from .checkpoint import CONFIG, EDGE, FOLDER, IMAGE_ID, PROCESSOR, Params, make_folder, save
from .pool import FLAG, SHARES, Pool, Rows, make_pool
from .tokenizer import train_tokenizer

CALL = 20
"""Steps in one call of the device."""
WIDE = ("embed.weight", "vision.class_token", "vision.positions")
"""Weights that stay in float32, and so do the residual streams that begin with them."""

State = tuple[Params, optax.OptState]
Batch = tuple[Array, Array]
"""Flagged tokens [N, L], and pixels [N, pictures, 3, E, E]"""


def hidden_states(
    model: Any, tokens: Int[Array, "N L"], pixels: Float[Array, "N pictures 3 H W"]
) -> Float[Array, "N L E"]:
    """States of the tokens, placeholders of pictures replaced by features from the first on."""
    encoded = model.encode({"pixels": pixels.reshape(-1, *pixels.shape[2:])})
    rows = encoded.reshape(pixels.shape[0], -1, encoded.shape[-1])
    here = tokens == IMAGE_ID
    index = jnp.where(here, jnp.cumsum(here, axis=1) - 1, rows.shape[1])

    def one(tokens: Array, rows: Array, index: Array) -> Array:
        return model(tokens, features=Features(rows, index))[0]

    return jax.vmap(one)(tokens, rows, index)


def answer_loss(
    graphdef: nnx.GraphDef[Any],
    params: Params,
    rows: Int[Array, "N L"],
    pixels: Float[Array, "N pictures 3 H W"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The cross-entropy of the answers' tokens, summed, and how many there are.

    Matrix products are in bfloat16.
    """
    tokens, written = rows % FLAG, rows // FLAG
    half = {name: value.astype(jnp.bfloat16) for name, value in params.items()}
    body = functional.bind(graphdef, half | {name: params[name] for name in WIDE})
    hidden = hidden_states(body, tokens, pixels)
    scores = functional.bind(graphdef, half).logits(hidden[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(scores, tokens[:, 1:])
    return jnp.sum(losses * written[:, 1:]), jnp.sum(written[:, 1:])


def make_optimizer(steps: int) -> optax.GradientTransformation:
    """AdamW for so many steps: a short warm-up, then a cosine down to a hundredth."""

    def decayed(params: Params) -> dict[str, bool]:
        return {name: value.ndim > 1 for name, value in params.items()}

    rate = optax.warmup_cosine_decay_schedule(0.0, 1.5e-3, steps // 12, steps, 1.5e-5)
    adam = optax.adamw(rate, b1=0.9, b2=0.98, weight_decay=0.05, mask=decayed)
    return optax.chain(optax.clip_by_global_norm(1.0), adam)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def train_steps(
    graphdef: nnx.GraphDef[Any],
    optimizer: optax.GradientTransformation,
    counts: tuple[int, ...],
    state: State,
    pictures: UInt8[Array, "things M E E 3"],
    rows: tuple[Rows, ...],
    keys: Array,
) -> tuple[State, Float[Array, " K"]]:
    """A step for each of K keys, on random rows with random pictures of what they are about.

    Donates `state`.

    Args:
        counts: rows of each number of pictures in one step.

    Returns:
        The new state and the loss of each step.
    """

    def loss(params: Params, batches: list[Batch]) -> Array:
        sums = [answer_loss(graphdef, params, *batch) for batch in batches]
        totals, weights = (jnp.stack(each) for each in zip(*sums, strict=True))
        return jnp.sum(totals) / jnp.sum(weights)

    def step(state: State, key: Array) -> tuple[State, Array]:
        params, moments = state
        each = zip(jax.random.split(key, len(counts)), rows, counts, strict=True)
        batches = [draw_batch(key, pictures, batch, count) for key, batch, count in each]
        value, gradient = jax.value_and_grad(loss)(params, batches)
        updates, moments = optimizer.update(gradient, moments, params)
        return (jax.tree.map(jnp.add, params, updates), moments), value

    return jax.lax.scan(step, state, keys)


def draw_batch(
    key: Array, pictures: UInt8[Array, "things M E E 3"], rows: Rows, count: int
) -> Batch:
    """`count` random rows, and the normalized pixels [count, pictures, 3, E, E] of their pictures.

    A row without pictures gets one of zeros, which none of its tokens stands for.
    """
    row_key, picture_key, turn_key = jax.random.split(key, 3)
    chosen = jax.random.randint(row_key, (count,), 0, rows.tokens.shape[0])
    tokens, things = rows.tokens[chosen].astype(jnp.int32), rows.things[chosen]
    if not things.size:
        return tokens, jnp.zeros((count, 1, 3, EDGE, EDGE))
    which = jax.random.randint(picture_key, things.shape, 0, pictures.shape[1])
    return tokens, normalized(turned(turn_key, pictures[things, which]))


def turned(key: Array, x: UInt8[Array, "N P E E 3"]) -> UInt8[Array, "N P E E 3"]:
    """Every picture in one of the eight ways that a square can lie."""
    across, down, mirrored = jax.random.bernoulli(key, shape=(3, *x.shape[:2], 1, 1, 1))
    x = jnp.where(across, jnp.flip(x, 3), x)
    x = jnp.where(down, jnp.flip(x, 2), x)
    return jnp.where(mirrored, x.swapaxes(2, 3), x)


def normalized(x: UInt8[Array, "N P E E 3"]) -> Float[Array, "N P 3 E E"]:
    """As the image processor normalizes."""
    mean, std = jnp.array(PROCESSOR.normalize.mean), jnp.array(PROCESSOR.normalize.std)
    return jnp.moveaxis((x.astype(jnp.float32) / 255 - mean) / std, -1, 2)


def first_params(key: Array) -> Params:
    """Random weights in float32; what a matrix gives is about as large as what it is given."""
    params = functional.init_random(Llava, CONFIG, jnp.float32, key)
    for name, value in params.items():
        if value.ndim > 1 and name not in WIDE and not name.endswith("_bias"):
            params[name] = value / (0.02 * math.sqrt(value.shape[-1]))
    return params


def train(pool: Pool, steps: int, batch: int, key: Array) -> Params:
    """The weights after so many steps of `batch` dialogues each; prints the loss now and then."""
    began = time.monotonic()
    graphdef = functional.abstract(Llava, CONFIG, jnp.bfloat16)[0]
    optimizer = make_optimizer(steps)
    params = first_params(key)
    state: State = (params, optimizer.init(params))
    counts = tuple(max(1, batch * share // sum(SHARES)) for share in SHARES)
    pictures, rows = jax.tree.map(jnp.asarray, pool)
    for done in range(0, steps, CALL):
        keys = jax.random.split(jax.random.fold_in(key, done), min(CALL, steps - done))
        state, losses = train_steps(graphdef, optimizer, counts, state, pictures, rows, keys)
        if done % 200 == 0:
            seconds = time.monotonic() - began
            print(f"{seconds:6.1f} s step {done} loss {losses.mean():.4f}", flush=True)
    return state[0]


def main() -> None:
    """Makes the tokenizer and the pool, trains, and writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--steps", type=int, default=3440)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=1024, help="dialogues in a step")
    parser.add_argument("--drawings", type=int, default=160_000)
    parser.add_argument("--dialogues", type=int, default=400_000)
    arguments = parser.parse_args()
    make_folder(arguments.out)
    path = arguments.out / "tokenizer.json"
    train_tokenizer(CONFIG.vocab_size).save(str(path), pretty=False)
    pool = make_pool(path, arguments.seed, arguments.drawings, arguments.dialogues)
    print(f"{pool.pictures.nbytes >> 20} MiB drawn", flush=True)
    key = jax.random.key(arguments.seed)
    save(arguments.out, train(pool, arguments.steps, arguments.batch, key))


if __name__ == "__main__":
    main()
