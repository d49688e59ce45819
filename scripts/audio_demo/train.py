"""Trains the audio demo on sounds and questions made for it: four minutes on an H200.

PYTHONPATH=src python -m scripts.audio_demo.train --out models/audio_demo
"""

import argparse
import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from quire.models import functional
from quire.models.qwen2_audio import Qwen2Audio
from quire.models.whisper import STRIDE

from ..media_demo.folder import Params, make_folder
from ..media_demo.tokenizer import train_tokenizer
from ..media_demo.training import answer_loss, draw_rows, packed, scaled, sines, train
from .checkpoint import CONFIG, FOLDER, SOUND_ID, save
from .dialogues import SPECIAL, random_sounds, training_dialogue
from .pool import SHARES, SHIFT, STEP, make_pool

WIDE = ("embed.weight", "audio.positions")
"""Weights that stay in float32, and so do the residual streams that begin with them."""


def make_loss(batch: int) -> Callable[[Params, Any, Array], Float[Array, ""]]:
    """The loss of about `batch` random dialogues of a pool, of parameters, pool and key."""
    graphdef: nnx.GraphDef[Any] = functional.abstract(Qwen2Audio, CONFIG, jnp.bfloat16)[0]
    counts = tuple(max(1, batch * share // sum(SHARES)) for share in SHARES)

    def loss(params: Params, pool: Any, key: Array) -> Float[Array, ""]:
        row_key, key = jax.random.split(key)
        tokens, media = draw_rows(row_key, pool.rows, counts)
        chosen = jnp.concatenate([numbers.reshape(-1) for numbers in media])
        mels = louder(key, unpacked(pool.mels[chosen]))
        encode = functools.partial(features, mels=mels, frames=pool.frames[chosen])
        return answer_loss(graphdef, WIDE, params, tokens, encode)

    return loss


def unpacked(mels: UInt8[Array, "N M T"]) -> Float[Array, "N M T"]:
    """As the tower takes them."""
    return mels.astype(jnp.float32) * STEP - SHIFT


def louder(key: Array, mels: Float[Array, "N M T"]) -> Float[Array, "N M T"]:
    """Each sound some decibels louder or softer; nothing gets softer than silence."""
    gain = jax.random.uniform(key, (mels.shape[0], 1, 1), minval=-0.2, maxval=0.2)
    return jnp.maximum(mels + gain, -SHIFT)


def features(
    model: Any, mels: Float[Array, "N M T"], frames: Int[Array, " N"]
) -> list[tuple[int, Float[Array, "F E"]]]:
    """What the model hears, sound by sound, padding last."""
    most = CONFIG.audio.num_rows
    sound, place = packed(-(-frames // STRIDE) // CONFIG.audio.pool, most)
    inputs = {"mels": mels, "frames": frames, "rows": sound * most + place}
    return [(SOUND_ID, model.encode(inputs))]


def first_params(key: Array) -> Params:
    """Random weights in float32, and sines as positions in the sound."""
    params = functional.init_random(Qwen2Audio, CONFIG, jnp.float32, key)
    number, size = params["audio.positions"].shape
    positions = sines(jnp.arange(number, dtype=jnp.float32), size, 1000.0)
    return scaled(params, WIDE) | {"audio.positions": positions}


def texts(count: int) -> Iterator[str]:
    """Of so many dialogues, always the same ones."""
    rng = Random(0)
    return (training_dialogue(rng, random_sounds(rng, i % 3)).text for i in range(count))


def main() -> None:
    """Makes the tokenizer and the pool, trains, and writes the folder."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--minutes", type=float, default=4, help="in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=512, help="dialogues in a step")
    parser.add_argument("--sounds", type=int, default=100_000)
    arguments = parser.parse_args()
    make_folder(FOLDER, arguments.out)
    path = arguments.out / "tokenizer.json"
    train_tokenizer(texts(6000), SPECIAL, CONFIG.vocab_size).save(str(path), pretty=False)
    pool = make_pool(path, arguments.seed, arguments.sounds)
    print(f"{time.monotonic() - began:.0f} s: {pool.mels.nbytes >> 20} MiB of sounds", flush=True)
    key = jax.random.key(arguments.seed)
    until = began + 60 * arguments.minutes - 3
    save(arguments.out, train(make_loss(arguments.batch), first_params(key), pool, key, until))
    print(f"{time.monotonic() - began:.0f} s in all")


if __name__ == "__main__":
    main()
