"""Trains the adapter in examples/sql_adapter, which lets the demo model answer in SQL.

PYTHONPATH=src python scripts/demo/train_adapter.py --out examples/sql_adapter

The weights of the model stay as they are: the loss is that of the model with `scale * b @ a` added
to its weights, and gradients are taken in a and b alone.
"""

import argparse
import dataclasses
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.flax
import tables
from flax import nnx
from jaxtyping import Array, Float, Int
from tokenizers import Tokenizer

from quire import Engine, LoRARequest, RequestOutput, SamplingParams
from quire.engine.model import DEMO_FOLDER, find_spec, load_weights
from quire.engine.options import EngineOptions
from quire.lora.mapping import EMBED, HEAD, BaseModel
from quire.models import functional
from quire.models.causal import causal_logits
from quire.models.llama import LlamaConfig

LENGTH = 72
"""Tokens of the longest question with its answer, and end token."""
WARMUP = 30
"""Steps until the learning rate is at its highest."""

Params = dict[str, Array]
Updates = dict[str, tuple[Array, Array]]
"""A [r, in] and B [out, r] of each adapted module, by its name in the checkpoint."""
Rows = tuple[Int[Array, "N L"], Float[Array, "N L"]]
"""Tokens, and 1.0 where a token belongs to an answer."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What the training depends on."""

    rank: int = 8
    alpha: int = 16
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "lm_head")
    """Last names of the modules that are adapted. The head is one, because that of the demo model
    hardly tells `<` from `>`: no text that it was trained on had either."""
    steps: int = 400
    batch: int = 32
    """Questions of one step."""
    rate: float = 5e-3
    """The highest learning rate."""
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Base:
    """The model that is adapted."""

    graphdef: nnx.GraphDef[Any]
    params: Params
    """In float32."""
    modules: BaseModel
    """What its checkpoint calls modules, and where they stand in the parameters."""


def load_base() -> Base:
    """The demo model, as the engine loads it, but with a head apart from its embedding."""
    options = EngineOptions(dtype="float32", enable_lora=True, use_tqdm_on_load=False)
    spec = find_spec(options)
    assert spec.adapters is not None
    params = load_weights(spec, options)
    config = dataclasses.replace(LlamaConfig.from_hf(spec.hf_config), tie_embeddings=False)
    graphdef = functional.abstract(spec.architecture, config, jnp.float32)[0]
    return Base(graphdef, {HEAD: params[EMBED], **params}, spec.adapters.base)


def first_updates(base: BaseModel, targets: Sequence[str], rank: int, key: Array) -> Updates:
    """Updates that change nothing yet: A is random, B zero."""
    updates: Updates = {}
    for name, module in base.modules.items():
        if name.rpartition(".")[2] in targets:
            key, own_key = jax.random.split(key)
            a = jax.random.normal(own_key, (rank, module.in_size)) / math.sqrt(module.in_size)
            updates[name] = a, jnp.zeros((module.out_size, rank))
    return updates


def adapted(base: BaseModel, params: Params, updates: Updates, scale: float) -> Params:
    """The parameters with the updates in them. Differentiable in the updates."""
    result = dict(params)
    for name, (a, b) in updates.items():
        delta = scale * b @ a
        for slot in base.modules[name].slots:
            part = delta[slot.rows].reshape(slot.shape)
            result[slot.param] = result[slot.param].at[slot.index].add(part)
    return result


def answer_loss(model: Any, rows: Rows) -> Float[Array, ""]:
    """The mean cross-entropy of the tokens of the answers."""
    tokens, weight = rows
    scores = causal_logits(model, tokens[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(scores, tokens[:, 1:])
    return jnp.sum(losses * weight[:, 1:]) / jnp.sum(weight)


def encode(tokenizer: Tokenizer, questions: Sequence[tables.Question]) -> Rows:
    """The questions with their answers, one a row."""
    tokens = np.zeros((len(questions), LENGTH), np.int32)
    weight = np.zeros(tokens.shape, np.float32)
    prompts = tokenizer.encode_batch_fast([one.prompt for one in questions])
    answers = tokenizer.encode_batch_fast([one.answer + tables.END for one in questions])
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        start, end = len(prompt.ids), len(prompt.ids) + len(answer.ids)
        tokens[i, :end] = prompt.ids + answer.ids
        weight[i, start:end] = 1.0
    return jnp.asarray(tokens), jnp.asarray(weight)


def train(base: Base, tokenizer: Tokenizer, options: Options) -> Updates:
    """The updates after all steps. Prints a line every few seconds."""
    warmup = min(WARMUP, options.steps // 2)
    rate = optax.warmup_cosine_decay_schedule(0.0, options.rate, warmup, options.steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    scale = options.alpha / options.rank

    @jax.jit
    def step(updates: Updates, moments: Any, params: Params, rows: Rows) -> Any:
        def loss(updates: Updates) -> Array:
            weights = adapted(base.modules, params, updates, scale)
            return answer_loss(functional.bind(base.graphdef, weights), rows)

        value, gradient = jax.value_and_grad(loss)(updates)
        change, moments = optimizer.update(gradient, moments, updates)
        return optax.apply_updates(updates, change), moments, value

    key = jax.random.key(options.seed)
    updates = first_updates(base.modules, options.targets, options.rank, key)
    moments = optimizer.init(updates)
    questions = tables.training_questions(options.seed, options.steps * options.batch)
    began = time.monotonic()
    for i in range(options.steps):
        rows = encode(tokenizer, questions[i * options.batch : (i + 1) * options.batch])
        updates, moments, loss = step(updates, moments, base.params, rows)
        if i % 20 == 0 or i == options.steps - 1:
            print(f"{time.monotonic() - began:6.1f} s step {i} loss {float(loss):.4f}", flush=True)
    return updates


def config_fields(base: BaseModel, options: Options) -> dict[str, Any]:
    """The contents of `adapter_config.json`, as PEFT writes it."""
    return {
        "base_model_name_or_path": base.name,
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": options.alpha,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": options.rank,
        "target_modules": list(options.targets),
        "task_type": "CAUSAL_LM",
    }


def save(folder: Path, base: BaseModel, updates: Updates, options: Options) -> None:
    """Writes the adapter into `folder` in PEFT's format, in float16."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config_fields(base, options), indent=2) + "\n"
    (folder / "adapter_config.json").write_text(text)
    tensors = {
        f"base_model.model.{module}.lora_{side}.weight": array.astype(jnp.float16)
        for module, pair in updates.items()
        for side, array in zip("AB", pair, strict=True)
    }
    path = folder / "adapter_model.safetensors"
    safetensors.flax.save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)


def share_right(answers: Sequence[RequestOutput], questions: Sequence[tables.Question]) -> float:
    """The share of answers that are right to the letter, and ended by the model itself."""
    right = [
        answer.outputs[0].text == one.answer and answer.outputs[0].finish_reason == "stop"
        for answer, one in zip(answers, questions, strict=True)
    ]
    return sum(right) / len(right)


def evaluate(folder: Path, count: int) -> dict[str, float]:
    """The shares of held-out questions that the base and the adapter answer, in one batch."""
    questions = tables.held_out_questions(count)
    params = SamplingParams(temperature=0, max_tokens=LENGTH)
    with Engine(enable_lora=True, use_tqdm_on_load=False) as engine:
        requests = [None] * count + [LoRARequest("sql", 1, str(folder))] * count
        prompts = [one.prompt for one in questions * 2]
        answers = engine.generate(prompts, params, use_tqdm=False, lora_request=requests)
    names, parts = ("base", "adapter"), (answers[:count], answers[count:])
    return {name: share_right(part, questions) for name, part in zip(names, parts, strict=True)}


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=Options.steps)
    parser.add_argument("--seed", type=int, default=Options.seed)
    parser.add_argument("--held-out", type=int, default=400, help="questions to evaluate with")
    return parser.parse_args()


def main() -> None:
    """Trains, writes the folder, and evaluates what it wrote."""
    arguments = read_arguments()
    options = Options(steps=arguments.steps, seed=arguments.seed)
    tokenizer = Tokenizer.from_file(str(DEMO_FOLDER / "tokenizer.json"))
    base = load_base()
    save(arguments.out, base.modules, train(base, tokenizer, options), options)
    size = sum(path.stat().st_size for path in arguments.out.iterdir())
    print(f"{arguments.out}: {size} bytes", flush=True)
    for name, share in evaluate(arguments.out, arguments.held_out).items():
        print(f"held out, {name:8} {100 * share:6.2f} %")


if __name__ == "__main__":
    main()
