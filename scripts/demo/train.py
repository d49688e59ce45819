"""Trains the demo model on text made as it goes, in a given time on one GPU.

PYTHONPATH=src python scripts/demo/train.py --out models/demo --minutes 6
"""

import argparse
import dataclasses
import functools
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from checkpoint import Params, definition, hf_config, load, save
from data import Document
from evaluate import accuracy, held_out_documents, report
from flax import nnx
from jaxtyping import Array, Float, Int
from pool import ANSWER, FLAG, PADDING, PROMPT, ShardStream, load_tokenizer
from tokenizers import Tokenizer

from quire.models import functional
from quire.models.llama import Llama

TOKENIZER_FOLDER = Path(__file__).parents[2] / "models" / "demo"
PROMPT_WEIGHT = 0.1
"""What a token of a prompt counts in the loss; one of an answer counts 1."""
CHECKS = (0.4, 0.6, 0.75, 0.9)
"""Shares of the time after which the held-out accuracy is taken and the best weights are kept."""
CHECK_COUNT = 100
"""Documents of each kind that such a check asks."""
RESERVE_SECONDS = 30.0
"""Time kept for the last evaluation."""

State = tuple[Params, optax.OptState]


def loss_sum(
    graphdef: nnx.GraphDef[Any], params: Params, rows: Int[Array, "N L"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Weighted cross-entropy of the rows, summed, and the sum of the weights.

    Matrix products are in bfloat16. The embedding table is looked up in float32, because its
    gradient adds up very many rows, and so the residual stream is float32.
    """
    tokens, flags = rows % FLAG, rows // FLAG
    half = {name: value.astype(jnp.bfloat16) for name, value in params.items()}
    body = functional.bind(graphdef, half | {"embed.weight": params["embed.weight"]})
    hidden = jax.vmap(lambda row: body(row)[0])(tokens)
    scores = functional.bind(graphdef, half).logits(hidden[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(scores, tokens[:, 1:])
    weights = jnp.zeros(3).at[PADDING].set(0.0).at[PROMPT].set(PROMPT_WEIGHT).at[ANSWER].set(1.0)
    weight = weights[flags[:, 1:]]
    return jnp.sum(losses * weight), jnp.sum(weight)


def make_optimizer() -> optax.GradientTransformation:
    """AdamW with a step size of one; the caller multiplies its updates by the learning rate."""

    def decayed(params: Params) -> dict[str, bool]:
        return {name: value.ndim > 1 for name, value in params.items()}

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(b1=0.9, b2=0.98),
        optax.add_decayed_weights(0.1, mask=decayed),
    )


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def train_steps(
    graphdef: nnx.GraphDef[Any],
    counts: tuple[int, ...],
    state: State,
    pool: list[Array],
    filled: Int[Array, " B"],
    rates: Float[Array, " K"],
    key: Array,
) -> tuple[State, Float[Array, " K"]]:
    """K steps on random rows of `pool`. Donates `state`.

    Args:
        counts: rows of each array of the pool in one step.
        filled: how many rows of each array are there to be drawn.
        rates: the learning rate of each step.

    Returns:
        The new state and the loss of each step.
    """
    optimizer = make_optimizer()

    def loss(params: Params, rows: list[Array]) -> Array:
        sums = [loss_sum(graphdef, params, part) for part in rows]
        totals, weights = (jnp.stack(each) for each in zip(*sums, strict=True))
        return jnp.sum(totals) / jnp.sum(weights)

    def step(state: State, rate_and_key: tuple[Array, Array]) -> tuple[State, Array]:
        params, moments = state
        rate, key = rate_and_key
        rows = draw_rows(key, pool, filled, counts)
        value, gradient = jax.value_and_grad(loss)(params, rows)
        updates, moments = optimizer.update(gradient, moments, params)
        params = jax.tree.map(lambda param, update: param - rate * update, params, updates)
        return (params, moments), value

    return jax.lax.scan(step, state, (rates, jax.random.split(key, rates.shape[0])))


def draw_rows(
    key: Array, pool: list[Array], filled: Int[Array, " B"], counts: tuple[int, ...]
) -> list[Array]:
    """`counts` random rows of each array of the pool, as int32."""
    keys = jax.random.split(key, len(counts))
    picks = [jax.random.randint(keys[i], (count,), 0, filled[i]) for i, count in enumerate(counts)]
    return [array[index].astype(jnp.int32) for array, index in zip(pool, picks, strict=True)]


def learning_rate(peak: float, step: int, warmup: int, progress: float) -> float:
    """Linear warm-up by step, then a cosine down to a hundredth by the share of the time."""
    cosine = 0.5 + 0.5 * math.cos(math.pi * min(progress, 1.0))
    return peak * min(1.0, (step + 1) / warmup) * (0.01 + 0.99 * cosine)


@dataclasses.dataclass
class Pool:
    """Rows on the device that steps draw from, renewed while they run."""

    stream: ShardStream
    shards: int
    """How many shards it holds at a time."""
    arrays: list[Array] = dataclasses.field(default_factory=list)
    filled: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
    renewals: int = 0

    def renew(self) -> None:
        """Takes the next shards, waiting for them; the shapes stay as they were first."""
        rows = self.stream.take(self.shards)
        sizes = [len(array) for array in self.arrays] or [int(len(a) * 1.1) + 1 for a in rows]
        counts = [min(len(a), size) for a, size in zip(rows, sizes, strict=True)]
        self.filled = np.array(counts, np.int32).clip(1)
        self.arrays = [jnp.asarray(resized(a, size)) for a, size in zip(rows, sizes, strict=True)]
        self.renewals += 1

    def renew_if_ready(self) -> None:
        """`renew`, where that needs no waiting."""
        if self.stream.ready(self.shards):
            self.renew()


def resized(array: np.ndarray, size: int) -> np.ndarray:
    """The array cut or filled with zeros to `size` rows."""
    result = np.zeros((size, array.shape[1]), array.dtype)
    result[: len(array)] = array[:size]
    return result


def rows_per_step(filled: np.ndarray, documents: int) -> tuple[int, ...]:
    """Rows of each length in a step of about that many documents, as frequent as in the pool."""
    shares = filled / filled.sum()
    return tuple(max(1, round(float(share) * documents)) for share in shares)


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=6.0, help="of the whole run")
    parser.add_argument("--resume", type=Path, help="a folder whose weights to start from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=3e-3, help="highest learning rate")
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--documents", type=int, default=768, help="in a step")
    parser.add_argument("--steps", type=int, default=20, help="in one call of the device")
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--intermediate", type=int, default=448)
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    parser.add_argument("--shard-documents", type=int, default=10_000)
    parser.add_argument("--held-out", type=int, default=400, help="documents of each kind")
    return parser.parse_args()


def copy_tokenizer(folder: Path) -> None:
    """Puts the tokenizer's files beside the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if folder.resolve() != TOKENIZER_FOLDER:
            shutil.copy(TOKENIZER_FOLDER / name, folder / name)


@dataclasses.dataclass
class Run:
    """A training run: what is fixed, and what it keeps count of."""

    arguments: argparse.Namespace
    hf: dict[str, Any]
    graphdef: nnx.GraphDef[Any]
    tokenizer: Tokenizer
    documents: list[Document]
    """Held-out ones that decide which weights are the best."""
    began: float
    checks: list[float] = dataclasses.field(default_factory=lambda: list(CHECKS))
    best: float = -1.0
    step: int = 0

    def progress(self) -> float:
        """Share of the training time that is over."""
        limit = self.arguments.minutes * 60 - RESERVE_SECONDS
        return (time.monotonic() - self.began) / max(limit, 1.0)

    def rates(self, start: float) -> Float[Array, " K"]:
        """Learning rates of the next steps; the first one trained was at the share `start`."""
        share = (self.progress() - start) / (1 - start)
        steps = range(self.step, self.step + self.arguments.steps)
        peak, warmup = self.arguments.rate, self.arguments.warmup
        return jnp.array([learning_rate(peak, step, warmup, share) for step in steps])

    def check_when_due(self, params: Params) -> None:
        """`check` at each of the shares of the time that are set for it."""
        if self.checks and self.progress() >= self.checks[0]:
            self.checks.pop(0)
            self.check(params)

    def check(self, params: Params) -> None:
        """Prints the held-out accuracy and writes the weights, unless better ones are there."""
        scores = accuracy(self.graphdef, halved(params), self.tokenizer, self.documents)
        print({kind: round(score, 3) for kind, score in scores.items()}, flush=True)
        if scores["all"] >= self.best:
            self.best = scores["all"]
            save(self.arguments.out, self.hf, params)

    def log(self, losses: Float[Array, " K"], renewals: int) -> None:
        """Prints the loss now and then; waits for the steps."""
        loss, every = float(losses.mean()), 10 * self.arguments.steps
        if self.step % every == 0 or self.step == self.arguments.steps:
            seconds = time.monotonic() - self.began
            line = f"{seconds:6.1f} s step {self.step} loss {loss:.4f} pools {renewals}"
            print(line, flush=True)


def halved(params: Params) -> Params:
    """The weights as they are shipped: bfloat16."""
    return {name: value.astype(jnp.bfloat16) for name, value in params.items()}


def first_params(run: Run, key: Array) -> Params:
    """Random weights, or those of the folder to resume from, in float32."""
    if run.arguments.resume:
        hf, params = load(run.arguments.resume)
        if hf != run.hf:
            raise SystemExit(
                f"{run.arguments.resume} has another shape; give its sizes as options."
            )
        return {name: value.astype(jnp.float32) for name, value in params.items()}
    return functional.init_random(Llama, definition(run.hf)[1], jnp.float32, key)


def train(run: Run, pool: Pool) -> None:
    """Trains until the time is over; keeps the best weights in the folder."""
    arguments = run.arguments
    key = jax.random.key(arguments.seed)
    params = first_params(run, key)
    state: State = (params, make_optimizer().init(params))
    size = sum(param.size for param in params.values())
    pool.renew()
    counts, start = rows_per_step(pool.filled, arguments.documents), min(run.progress(), 0.9)
    print(f"{size} parameters; rows in a step: {counts}", flush=True)
    while run.progress() < 1.0:
        call_key = jax.random.fold_in(key, run.step)
        feed = (pool.arrays, pool.filled, run.rates(start), call_key)
        state, losses = train_steps(run.graphdef, counts, state, *feed)
        run.step += arguments.steps
        pool.renew_if_ready()
        run.log(losses, pool.renewals)
        run.check_when_due(state[0])
    run.check(state[0])


def main() -> None:
    """Trains, writes the folder, and evaluates what it wrote."""
    began = time.monotonic()
    arguments = read_arguments()
    copy_tokenizer(arguments.out)
    path = TOKENIZER_FOLDER / "tokenizer.json"
    stream = ShardStream(path, arguments.seed, arguments.shard_documents, arguments.workers)
    hf = hf_config(arguments.hidden, arguments.layers, arguments.intermediate)
    documents = held_out_documents(min(CHECK_COUNT, arguments.held_out), seed=1)
    run = Run(arguments, hf, definition(hf)[0], load_tokenizer(path), documents, began)
    train(run, Pool(stream, arguments.workers))
    report(run.graphdef, load(arguments.out)[1], run.tokenizer, arguments.held_out)
    print(f"done: {run.step} steps, {time.monotonic() - began:.0f} s", flush=True)
    stream.close()


if __name__ == "__main__":
    main()
