"""How many held-out questions of each kind the demo model answers, greedily and to the letter.

PYTHONPATH=src python scripts/demo/evaluate.py models/demo
"""

import argparse
import functools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from checkpoint import STOP_IDS, Params, definition, load
from data import HELD_OUT_KINDS, Document, held_out
from flax import nnx
from jaxtyping import Array, Bool, Int
from pool import ANSWER, FLAG, LENGTHS, bucket, encode, load_tokenizer
from render import render
from tokenizers import Tokenizer

from quire.models import functional
from quire.models.causal import causal_logits

TOKENS_PER_BATCH = 1 << 16

SEED_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather in a given location",
        "parameters": {
            "type": "object",
            "properties": {
                "location": {
                    "type": "string",
                    "description": "City and state, e.g., 'San Francisco, CA'",
                },
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["location", "unit"],
        },
    },
}
QUESTIONS = (
    "Who are you?",
    "Tell me a joke.",
    "What is 27 + 45?",
    "What colour is the sky?",
    "Who won the world series in 2020?",
    "Write an essay about the importance of higher education.",
)
TEXTS = (
    "Hello, my name is",
    "The president of the United States is",
    "The capital of France is",
    "The future of AI is",
    "San Francisco is a",
    "12 + 30 =",
)


@functools.partial(jax.jit, static_argnums=0)
def right_answers(
    graphdef: nnx.GraphDef[Any], params: Params, rows: Int[Array, "N L"]
) -> Bool[Array, " N"]:
    """Whether greedy decoding from the prompt of a row writes exactly its answer.

    It does if and only if every token of the answer scores highest after those before it.
    """
    tokens, flags = rows % FLAG, rows // FLAG
    scores = causal_logits(functional.bind(graphdef, params), tokens)
    hits = jnp.argmax(scores[:, :-1], axis=-1) == tokens[:, 1:]
    return jnp.all(hits | (flags[:, 1:] != ANSWER), axis=1)


def accuracy(
    graphdef: nnx.GraphDef[Any], params: Params, tokenizer: Tokenizer, documents: list[Document]
) -> dict[str, float]:
    """The share of right answers by kind of document, and over "all".

    A document longer than the context counts as wrong.
    """
    right: Counter[str] = Counter()
    arrays, places = bucket(encode(tokenizer, documents, last_only=True))
    for array, place, length in zip(arrays, places, LENGTHS, strict=True):
        size = TOKENS_PER_BATCH // length
        for start in range(0, len(place), size):
            part = np.zeros((size, length), np.int32)
            count = len(array[start : start + size])
            part[:count] = array[start : start + size]
            hits = np.asarray(right_answers(graphdef, params, part))[:count]
            right.update(
                documents[i].kind
                for i, hit in zip(place[start : start + size], hits, strict=True)
                if hit
            )
    total = Counter(document.kind for document in documents)
    scores = {kind: right[kind] / total[kind] for kind in total}
    return scores | {"all": right.total() / total.total()}


def held_out_documents(count: int, seed: int = 0) -> list[Document]:
    """Up to `count` held-out documents of every kind."""
    return [document for kind in HELD_OUT_KINDS for document in held_out(kind, count, seed)]


def sample_prompts() -> list[str]:
    """Prompts to look at: texts to go on with, chats, and a request for a function call."""
    chats = [([{"role": "user", "content": text}], []) for text in QUESTIONS]
    weather = {"role": "user", "content": "What's the weather like in San Francisco?"}
    chats.append(([weather], [SEED_TOOL]))
    rendered = ["".join(text for text, _ in render(*chat)) for chat in chats]
    return [*TEXTS, *(text + "<|im_start|>assistant\n" for text in rendered)]


@functools.partial(jax.jit, static_argnums=0)
def greedy_step(
    graphdef: nnx.GraphDef[Any],
    params: Params,
    tokens: Int[Array, "N L"],
    lengths: Int[Array, " N"],
) -> tuple[Int[Array, "N L"], Int[Array, " N"]]:
    """Rows with the likeliest next token behind their first `lengths`; stopped rows stay."""
    scores = causal_logits(functional.bind(graphdef, params), tokens)
    each = jnp.arange(tokens.shape[0])
    written = jnp.argmax(scores[each, lengths - 1], axis=-1).astype(tokens.dtype)
    last = tokens[each, lengths - 1]
    stopped = jnp.isin(last, jnp.array(STOP_IDS)) | (lengths >= tokens.shape[1])
    tokens = tokens.at[each, lengths].set(jnp.where(stopped, tokens[each, lengths], written))
    return tokens, jnp.where(stopped, lengths, lengths + 1)


def complete(
    graphdef: nnx.GraphDef[Any],
    params: Params,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    length: int = 384,
    steps: int = 128,
) -> list[str]:
    """What the model writes after each prompt, greedily, special tokens included."""
    encoded = [tokenizer.encode(prompt, add_special_tokens=False).ids for prompt in prompts]
    tokens = np.zeros((len(prompts), length), np.int32)
    for row, ids in zip(tokens, encoded, strict=True):
        row[: len(ids)] = ids
    lengths = np.array([len(ids) for ids in encoded], np.int32)
    state = (jnp.asarray(tokens), jnp.asarray(lengths))
    for _ in range(steps):
        state = greedy_step(graphdef, params, *state)
    rows, ends = np.asarray(state[0]), np.asarray(state[1])
    return [
        tokenizer.decode(row[len(ids) : end].tolist(), skip_special_tokens=False)
        for row, ids, end in zip(rows, encoded, ends, strict=True)
    ]


def report(
    graphdef: nnx.GraphDef[Any], params: Params, tokenizer: Tokenizer, count: int
) -> dict[str, float]:
    """Prints the accuracy of every kind and some answers; returns the former."""
    scores = accuracy(graphdef, params, tokenizer, held_out_documents(count))
    for kind, score in scores.items():
        print(f"held out {kind:12} {100 * score:6.2f} %")
    prompts = sample_prompts()
    for prompt, text in zip(prompts, complete(graphdef, params, tokenizer, prompts), strict=True):
        print(f"{prompt[-80:]!r} -> {text!r}")
    return scores


def main() -> None:
    """Evaluates a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=400, help="documents of each kind")
    arguments = parser.parse_args()
    hf, params = load(arguments.folder)
    tokenizer = load_tokenizer(arguments.folder / "tokenizer.json")
    report(definition(hf)[0], params, tokenizer, arguments.count)


if __name__ == "__main__":
    main()
