"""Trains the vision demo on drawings and questions made for it: five minutes on an H200.

PYTHONPATH=src python -m scripts.vision_demo.train --out models/vision_demo
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
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8

from quire.models import functional
from quire.models.llava_next_video import LlavaNextVideo
from quire.models.squares import TileEncoder
from quire.multimodal.tiles import Tiles

from ..media_demo.folder import Params, make_folder
from ..media_demo.tokenizer import train_tokenizer
from ..media_demo.training import answer_loss, draw_rows, expanded, packed, scaled, sines, train
from .checkpoint import CONFIG, FOLDER, IMAGE_ID, PICTURES, VIDEO_ID, save
from .clips import DIRECTIONS
from .dialogues import SPECIAL, any_shown, training_dialogue
from .kinds import CLIP, KINDS
from .pool import CLIP_ROWS, KEPT, LENGTH, PICTURE_ROWS, SHARES, STILL, make_pool

WIDE = ("embed.weight", "vision.class_token", "vision.positions")
"""Weights that stay in float32, and so do the residual streams that begin with them."""


def layouts() -> tuple[np.ndarray, np.ndarray]:
    """By place in `KEPT`: which rows of the two squares of a picture, or what ends lines behind
    them, its features are [3, PICTURE_ROWS], and how many those are [3]."""
    encoder = TileEncoder(PICTURES.side, PICTURES.along, CONFIG.most_tiles)
    squares = np.zeros((2, 3, PICTURES.side, PICTURES.side), np.float32)
    tiles = [Tiles(squares, (1, 1), kept, kept) for kept in KEPT]
    rows = [encoder.inputs([each], 2)["index"][:PICTURE_ROWS, 0] for each in tiles]
    return np.stack(rows), np.array([encoder.num_tokens(each) for each in tiles], np.int32)


LAYOUT, PICTURE_COUNTS = layouts()


def make_loss(batch: int) -> Callable[[Params, Any, Array], Float[Array, ""]]:
    """The loss of about `batch` random dialogues of a pool, of parameters, pool and key."""
    graphdef: nnx.GraphDef[Any] = functional.abstract(LlavaNextVideo, CONFIG, jnp.bfloat16)[0]
    counts = [max(1, batch * SHARES[scene] // sum(SHARES.values())) for scene in (*STILL, CLIP)]

    def loss(params: Params, pool: Any, key: Array) -> Float[Array, ""]:
        row_key, picture_key, key = jax.random.split(key, 3)
        texts, media = draw_rows(row_key, (*pool.rows, pool.clips.rows), counts)
        things = jnp.concatenate([numbers.reshape(-1) for numbers in media[:-1]])
        pictures, kept = draw_pictures(picture_key, pool.pictures, things)
        clips, frames = draw_clips(key, pool.clips, media[-1].reshape(-1))
        rows = {
            IMAGE_ID: jnp.asarray(PICTURE_COUNTS)[kept],
            VIDEO_ID: frames * CONFIG.frame_along**2,
        }
        encode = functools.partial(features, pictures=pictures, kept=kept, clips=clips, counts=rows)
        return answer_loss(graphdef, WIDE, params, expanded(texts, rows, LENGTH), encode)

    return loss


def draw_pictures(
    key: Array, pictures: Any, things: Int[Array, " N"]
) -> tuple[UInt8[Array, "N 2 E E 3"], Int[Array, " N"]]:
    """A random drawing of each thing in one of the eight ways that a square can lie, and its place
    in `KEPT`."""
    which_key, turn_key = jax.random.split(key)
    which = jax.random.randint(which_key, things.shape, 0, pictures.squares.shape[1])
    across, down, mirrored = jax.random.bernoulli(turn_key, shape=(3, *things.shape))
    x, kept = pictures.squares[things, which], pictures.kept[things, which]
    x = flipped(flipped(x, across, 3), down, 2)
    sides = jnp.where(kept > 0, 3 - kept, kept)
    return mirrored_where(x, mirrored), jnp.where(mirrored, sides, kept)


def draw_clips(
    key: Array, clips: Any, media: Int[Array, " N"]
) -> tuple[UInt8[Array, "N T E E 3"], Int[Array, " N"]]:
    """Clips turned to their directions, half of them mirrored, and how many frames each has."""
    number, direction = jnp.divmod(media, len(DIRECTIONS))
    x = flipped(clips.squares[number], jax.random.bernoulli(key, shape=media.shape), 2)
    x = mirrored_where(x, direction % 2 == 1)
    x = flipped(x, direction == DIRECTIONS.index("left"), 3)
    return flipped(x, direction == DIRECTIONS.index("up"), 2), clips.frames[number]


def flipped(
    x: UInt8[Array, "N P E E 3"], where: Bool[Array, " N"], axis: int
) -> UInt8[Array, "N P E E 3"]:
    """Squares of some media with this axis turned round."""
    return jnp.where(where[:, None, None, None, None], jnp.flip(x, axis), x)


def mirrored_where(
    x: UInt8[Array, "N P E E 3"], where: Bool[Array, " N"]
) -> UInt8[Array, "N P E E 3"]:
    """Squares of some media with rows as columns."""
    return jnp.where(where[:, None, None, None, None], x.swapaxes(2, 3), x)


def normalized(x: UInt8[Array, "N P E E 3"]) -> Float[Array, "N*P 3 E E"]:
    """As the image processor normalizes."""
    mean, std = jnp.array(PICTURES.normalize.mean), jnp.array(PICTURES.normalize.std)
    pixels = (x.reshape(-1, *x.shape[2:]).astype(jnp.float32) / 255 - mean) / std
    return jnp.moveaxis(pixels, -1, 1)


def features(
    model: Any,
    pictures: UInt8[Array, "N 2 E E 3"],
    kept: Int[Array, " N"],
    clips: UInt8[Array, "M T E E 3"],
    counts: dict[int, Array],
) -> list[tuple[int, Float[Array, "F E"]]]:
    """What the model sees, picture by picture and clip by clip, padding last.

    Args:
        counts: features of each picture and of each clip.
    """
    medium, place = packed(counts[IMAGE_ID], PICTURE_ROWS)
    local, patches = jnp.asarray(LAYOUT)[kept[medium], place], 2 * CONFIG.vision.num_patches
    index = jnp.where(local < patches, medium * patches + local, len(kept) * patches)
    taps = {"index": jnp.tile(index[:, None], 4), "weight": jnp.full((len(index), 4), 0.25)}
    shown = model.encode({"pixels": normalized(pictures), **taps})
    place = packed(counts[VIDEO_ID], CLIP_ROWS)
    seen = model.encode({"pixels": normalized(clips)}).reshape(len(clips), CLIP_ROWS, -1)
    return [(IMAGE_ID, shown), (VIDEO_ID, seen.at[place].get(mode="clip"))]


def first_params(key: Array) -> Params:
    """Random weights in float32, and sines of row and column as positions in a square."""
    params = functional.init_random(LlavaNextVideo, CONFIG, jnp.float32, key)
    patches, size = jnp.arange(CONFIG.vision.num_patches), CONFIG.vision.hidden_size
    places = [each.astype(jnp.float32) for each in jnp.divmod(patches, CONFIG.vision.along)]
    positions = jnp.concatenate([sines(each, size // 2, 40.0) for each in places], axis=1)
    positions = jnp.pad(positions, ((1, 0), (0, 0)))  # none for the class token
    return scaled(params, WIDE) | {"vision.positions": positions}


def texts(count: int) -> Iterator[str]:
    """Of so many dialogues, always the same ones."""
    rng, scenes = Random(0), tuple(KINDS)
    for i in range(count):
        scene = scenes[i % len(scenes)]
        yield training_dialogue(rng, scene, any_shown(rng, scene)).text


def main() -> None:
    """Makes the tokenizer and the pool, trains, and writes the folder."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--minutes", type=float, default=5, help="in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=256, help="dialogues in a step")
    parser.add_argument("--drawings", type=int, default=100_000)
    parser.add_argument("--clips", type=int, default=30_000)
    parser.add_argument("--dialogues", type=int, default=300_000)
    arguments = parser.parse_args()
    make_folder(FOLDER, arguments.out)
    path = arguments.out / "tokenizer.json"
    train_tokenizer(texts(8000), SPECIAL, CONFIG.vocab_size).save(str(path), pretty=False)
    pool = make_pool(path, arguments.seed, arguments.drawings, arguments.clips, arguments.dialogues)
    size = (pool.pictures.squares.nbytes + pool.clips.squares.nbytes) >> 20
    print(f"{time.monotonic() - began:.0f} s: {size} MiB drawn", flush=True)
    key = jax.random.key(arguments.seed)
    until = began + 60 * arguments.minutes - 3
    save(arguments.out, train(make_loss(arguments.batch), first_params(key), pool, key, until))
    print(f"{time.monotonic() - began:.0f} s in all")


if __name__ == "__main__":
    main()
