"""Drawings as the tower sees them, and dialogues as rows of tokens, made by worker processes."""

import dataclasses
from collections.abc import Sequence
from itertools import product, repeat
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from quire.multimodal.pixels import Normalization
from quire.multimodal.tiles import Size

from ..media_demo.rows import Rows, encode, joined, padded
from ..media_demo.workers import make_workers
from .checkpoint import CLIPS, CONFIG, EDGE, PAD_ID, PICTURES
from .clips import DIRECTIONS, FRAMES, Clip, any_clip, filmed_rightwards
from .dialogues import Shown, any_shown, training_dialogue
from .drawings import draw
from .kinds import CLIP, KINDS
from .shapes import COLOURS, SHAPES
from .wordings import Thing

KEPT: tuple[Size, ...] = ((6, 6), (4, 6), (6, 4))
"""What is kept of the tile of a drawing, in features: of a square one, a wide and a tall one."""
PICTURE_ROWS = CONFIG.vision.along**2 + max(rows * (columns + 1) for rows, columns in KEPT)
FRAME_ROWS = CONFIG.frame_along**2
CLIP_ROWS = FRAMES[1] * FRAME_ROWS
"""The most features that a picture has, those of a frame, and the most of a clip."""
SHARES = {"nothing": 1, "picture": 5, "pictures": 6, "clip": 4}
"""How frequent rows are, by their scene."""
STILL = tuple(scene for scene in KINDS if scene != CLIP)
"""Scenes without a clip."""
TEXT, LENGTH = 96, 232
"""The most tokens of a row before and after placeholders are repeated."""
THINGS = {Thing(*names): i for i, names in enumerate(product(SHAPES, COLOURS))}
"""Every thing that is drawn, and its number."""

SHARD_PICTURES, SHARD_CLIPS, SHARD_ROWS = 10, 250, 4000
"""Drawings of each thing, clips, and dialogues in one task of a worker."""
PLAIN = Normalization(1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class Pictures(NamedTuple):
    """Drawings of every thing."""

    squares: np.ndarray
    """uint8 [things, M, 2, EDGE, EDGE, 3]: the whole and a tile, not yet normalized."""
    kept: np.ndarray
    """int32 [things, M]: places in `KEPT`."""


class Clips(NamedTuple):
    """Clips in which what moves goes to the right, and dialogues about them however turned."""

    squares: np.ndarray
    """uint8 [clips, most frames, EDGE, EDGE, 3]: not yet normalized."""
    frames: np.ndarray
    """int32 [clips]: how many there are."""
    rows: Rows
    """A medium is the number of a clip times four, and the place of its direction in
    `DIRECTIONS`."""


class Pool(NamedTuple):
    """All that steps draw from."""

    pictures: Pictures
    clips: Clips
    rows: tuple[Rows, ...]
    """By scene, as in `STILL`. A medium is the number of a thing."""


def picture_shard(seed: str) -> Pictures:
    """Some drawings of every thing."""
    rng = Random(f"training {seed}")
    processor = dataclasses.replace(PICTURES, normalize=PLAIN)
    squares = np.empty((len(THINGS), SHARD_PICTURES, 2, 3, EDGE, EDGE), np.uint8)
    kept = np.empty(squares.shape[:2], np.int32)
    for (thing, number), i in product(THINGS.items(), range(SHARD_PICTURES)):
        made = processor(draw(rng, thing.shape, thing.colour))
        squares[number, i], kept[number, i] = made.pixels, KEPT.index(made.kept)
    return Pictures(np.moveaxis(squares, 3, -1), kept)


def clip_shard(tokenizer_path: Path, seed: str) -> Clips:
    """Some clips, and dialogues about random ones of them in random directions."""
    tokenizer, rng = Tokenizer.from_file(str(tokenizer_path)), Random(f"training {seed}")
    processor = dataclasses.replace(CLIPS, clip=dataclasses.replace(CLIPS.clip, normalize=PLAIN))
    clips = [any_clip(rng) for _ in range(SHARD_CLIPS)]
    squares = np.zeros((SHARD_CLIPS, FRAMES[1], 3, EDGE, EDGE), np.uint8)
    frames = np.empty(SHARD_CLIPS, np.int32)
    for i, clip in enumerate(clips):
        pixels = processor(filmed_rightwards(rng, clip)).pixels
        squares[i, : len(pixels)], frames[i] = pixels, len(pixels)
    media = [
        [rng.randrange(SHARD_CLIPS) * len(DIRECTIONS) + rng.randrange(len(DIRECTIONS))]
        for _ in range(SHARD_ROWS * SHARES[CLIP] // sum(SHARES.values()))
    ]
    shown = [(turned_clip(clips, number),) for (number,) in media]
    rows = make_rows(tokenizer, rng, CLIP, shown, media)
    return Clips(np.moveaxis(squares, 2, -1), frames, rows)


def turned_clip(clips: Sequence[Clip], medium: int) -> Clip:
    """A clip with its direction, of their number."""
    number, direction = divmod(medium, len(DIRECTIONS))
    return dataclasses.replace(clips[number], direction=DIRECTIONS[direction])


def row_shard(tokenizer_path: Path, seed: str) -> tuple[Rows, ...]:
    """Some dialogues of each scene without a clip."""
    tokenizer, rng = Tokenizer.from_file(str(tokenizer_path)), Random(f"training {seed}")
    groups = []
    for scene in STILL:
        count = SHARD_ROWS * SHARES[scene] // sum(SHARES.values())
        shown = [any_shown(rng, scene) for _ in range(count)]
        media = [[THINGS[one] for one in things if isinstance(one, Thing)] for things in shown]
        groups.append(make_rows(tokenizer, rng, scene, shown, media))
    return tuple(groups)


def make_rows(
    tokenizer: Tokenizer,
    rng: Random,
    scene: str,
    shown: Sequence[Shown],
    media: Sequence[Sequence[int]],
) -> Rows:
    """A dialogue about each of what is shown, which has these numbers; one that would be too long
    with the most features is left out."""
    rows = encode(tokenizer, [training_dialogue(rng, scene, each) for each in shown])
    added = CLIP_ROWS if scene == CLIP else PICTURE_ROWS * len(media[0])
    pairs = [pair for pair in zip(rows, media, strict=True) if len(pair[0]) + added <= LENGTH]
    fitting, numbers = zip(*pairs, strict=True)
    return padded(fitting, numbers, TEXT, PAD_ID)


def make_pool(tokenizer_path: Path, seed: int, drawings: int, clips: int, dialogues: int) -> Pool:
    """About so many drawings, clips and dialogues, the same for the same seed. Waits for the
    workers."""
    names = [
        [f"{what} {seed} {i}" for i in range(max(1, count // size))]
        for what, count, size in (
            ("pictures", drawings, SHARD_PICTURES * len(THINGS)),
            ("clips", clips, SHARD_CLIPS),
            ("rows", dialogues, SHARD_ROWS),
        )
    ]
    with make_workers() as executor:
        pictures = executor.map(picture_shard, names[0])
        films = executor.map(clip_shard, repeat(tokenizer_path), names[1])
        rows = executor.map(row_shard, repeat(tokenizer_path), names[2])
        squares, kept = (np.concatenate(arrays, 1) for arrays in zip(*pictures, strict=True))
        groups = tuple(joined(shards) for shards in zip(*rows, strict=True))
        return Pool(Pictures(squares, kept), joined_clips(list(films)), groups)


def joined_clips(shards: Sequence[Clips]) -> Clips:
    """All clips of the shards."""
    size = SHARD_CLIPS * len(DIRECTIONS)
    rows = [Rows(shard.rows.tokens, shard.rows.media + i * size) for i, shard in enumerate(shards)]
    squares, frames = (np.concatenate([shard[field] for shard in shards]) for field in range(2))
    return Clips(squares, frames, joined(rows))
