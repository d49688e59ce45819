"""Drawings as the tower sees them, and dialogues as rows of tokens, made by worker processes."""

import dataclasses
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product, repeat
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from quire.multimodal.pixels import Normalization

from .checkpoint import CONFIG, EDGE, IMAGE_ID, PAD_ID, PROCESSOR
from .dialogues import Dialogue, training_dialogue
from .drawings import draw
from .shapes import COLOURS, SHAPES
from .wordings import Thing

FLAG = 1 << 12
"""A token of an answer has this added to it."""
LENGTHS = (96, 112, 160)
"""Tokens of a row, by the number of its pictures."""
SHARES = (1, 7, 8)
"""How frequent rows are, by the number of their pictures."""
THINGS = {Thing(*names): i for i, names in enumerate(product(SHAPES, COLOURS))}
"""Every thing that is drawn, and its number."""

SHARD_PICTURES = 10
"""Drawings of each thing in one task of a worker."""
SHARD_ROWS = 4000
"""Dialogues in one."""


class Rows(NamedTuple):
    """Dialogues that all have the same number of pictures."""

    tokens: np.ndarray
    """uint16 [N, L], each placeholder of a picture as many times as a picture has features."""
    things: np.ndarray
    """uint8 [N, pictures]: the numbers of the things that are shown."""


class Pool(NamedTuple):
    """All that steps draw from."""

    pictures: np.ndarray
    """uint8 [things, M, EDGE, EDGE, 3]: resized and cut, but not yet normalized."""
    rows: tuple[Rows, ...]
    """By number of pictures."""


def picture_shard(seed: str) -> np.ndarray:
    """Some drawings of every thing, uint8 [things, SHARD_PICTURES, EDGE, EDGE, 3]."""
    rng = Random(f"training {seed}")
    plain = Normalization(1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    processor = dataclasses.replace(PROCESSOR, normalize=plain)
    result = np.empty((len(THINGS), SHARD_PICTURES, EDGE, EDGE, 3), np.uint8)
    for thing, number in THINGS.items():
        for i in range(SHARD_PICTURES):
            result[number, i] = processor(draw(rng, thing.shape, thing.colour)).transpose(1, 2, 0)
    return result


def row_shard(tokenizer_path: Path, seed: str) -> tuple[Rows, ...]:
    """Some dialogues with each number of pictures; one that is too long is left out."""
    tokenizer, rng = Tokenizer.from_file(str(tokenizer_path)), Random(f"training {seed}")
    shards = []
    for pictures, (length, share) in enumerate(zip(LENGTHS, SHARES, strict=True)):
        count = SHARD_ROWS * share // sum(SHARES)
        dialogues = [training_dialogue(rng, pictures) for _ in range(count)]
        pairs = zip(encode(tokenizer, dialogues), dialogues, strict=True)
        fitting = [(row, dialogue) for row, dialogue in pairs if len(row) <= length]
        tokens = np.full((len(fitting), length), PAD_ID, np.uint16)
        things = np.zeros((len(fitting), pictures), np.uint8)
        for i, (row, dialogue) in enumerate(fitting):
            tokens[i, : len(row)] = row
            things[i] = [THINGS[thing] for thing in dialogue.things]
        shards.append(Rows(tokens, things))
    return tuple(shards)


def encode(tokenizer: Tokenizer, dialogues: Sequence[Dialogue]) -> Iterator[np.ndarray]:
    """Each dialogue as tokens, flagged where the model is meant to write them."""
    texts = [text for dialogue in dialogues for text, _ in dialogue.segments]
    encoded = iter(tokenizer.encode_batch_fast(texts, add_special_tokens=False))
    for dialogue in dialogues:
        pieces = [
            np.array(next(encoded).ids, np.uint16) + np.uint16(FLAG * written)
            for _, written in dialogue.segments
        ]
        row = np.concatenate(pieces)
        yield np.repeat(row, np.where(row == IMAGE_ID, CONFIG.picture_rows, 1))


def make_pool(tokenizer_path: Path, seed: int, drawings: int, dialogues: int) -> Pool:
    """About so many drawings and dialogues, the same for the same seed. Waits for the workers."""
    picture_shards = max(1, drawings // (SHARD_PICTURES * len(THINGS)))
    row_shards = max(1, dialogues // SHARD_ROWS)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(mp_context=context) as executor:
        names = [f"{seed} {i}" for i in range(max(picture_shards, row_shards))]
        rows = executor.map(row_shard, repeat(tokenizer_path), names[:row_shards])
        pictures = executor.map(picture_shard, names[:picture_shards])
        by_number = (zip(*shards, strict=True) for shards in zip(*rows, strict=True))
        joined = tuple(Rows(*map(np.concatenate, fields)) for fields in by_number)
        return Pool(np.concatenate(list(pictures), axis=1), joined)
