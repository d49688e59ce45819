"""Sounds as the tower hears them, and dialogues as rows of tokens, made by worker processes."""

from collections.abc import Sequence
from itertools import repeat
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from ..media_demo.rows import Rows, encode, joined, padded, repeated
from ..media_demo.words import pick
from ..media_demo.workers import make_workers
from .checkpoint import CONFIG, LOG_MEL, PAD_ID, SOUND_ID
from .dialogues import random_sounds, training_dialogue
from .tones import Sound, play

LENGTH = 192
"""Tokens of a row."""
SHARES = (1, 9, 6)
"""How frequent rows are, by the number of their sounds."""
SHARD_SOUNDS, SHARD_ROWS = 1000, 4000
"""Sounds and dialogues about them that are made in one task of a worker."""
STEP, SHIFT = 0.0125, 1.5
"""A value of a spectrogram is stored as an integer: so much a step, from -SHIFT on."""


class Pool(NamedTuple):
    """All that steps draw from."""

    mels: np.ndarray
    """uint8 [sounds, M, T]: log-mel spectrograms, see `STEP`."""
    frames: np.ndarray
    """int32 [sounds]: how many of the T are heard."""
    rows: tuple[Rows, ...]
    """By number of sounds."""


def make_shard(tokenizer_path: Path, seed: str) -> Pool:
    """Some sounds, and dialogues about random ones of them."""
    tokenizer, rng = Tokenizer.from_file(str(tokenizer_path)), Random(f"training {seed}")
    sounds = [random_sounds(rng, 1)[0] for _ in range(SHARD_SOUNDS)]
    made = [LOG_MEL(play(rng, sound)) for sound in sounds]
    mels = [np.round((one.mels + SHIFT) / STEP).clip(0, 255).astype(np.uint8) for one in made]
    frames = np.array([one.frames for one in made], np.int32)
    groups = []
    for number, share in enumerate(SHARES):
        count = SHARD_ROWS * share // sum(SHARES)
        chosen = [choose(rng, sounds, number) for _ in range(count)]
        groups.append(make_rows(tokenizer, rng, sounds, frames, chosen))
    return Pool(np.stack(mels), frames, tuple(groups))


def choose(rng: Random, sounds: Sequence[Sound], number: int) -> list[int]:
    """So many of the sounds by their places; two are often one tone each."""
    chosen = [rng.randrange(len(sounds)) for _ in range(number)]
    if number == 2 and rng.random() < 0.3:
        single = [i for i, sound in enumerate(sounds) if sound.number == 1]
        chosen = [pick(rng, single) for _ in range(number)]
    return chosen


def make_rows(
    tokenizer: Tokenizer,
    rng: Random,
    sounds: Sequence[Sound],
    frames: np.ndarray,
    chosen: Sequence[Sequence[int]],
) -> Rows:
    """A dialogue about each choice of sounds."""
    dialogues = [training_dialogue(rng, [sounds[i] for i in places]) for places in chosen]
    rows = [
        repeated(row, [SOUND_ID], [CONFIG.audio.rows(int(frames[i])) for i in places])
        for row, places in zip(encode(tokenizer, dialogues), chosen, strict=True)
    ]
    return padded(rows, chosen, LENGTH, PAD_ID)


def make_pool(tokenizer_path: Path, seed: int, sounds: int) -> Pool:
    """About so many sounds, the same for the same seed. Waits for the workers."""
    names = [f"{seed} {i}" for i in range(max(1, sounds // SHARD_SOUNDS))]
    with make_workers() as executor:
        shards = list(executor.map(make_shard, repeat(tokenizer_path), names))
    groups = []
    for group in zip(*(shard.rows for shard in shards), strict=True):
        shifted = [Rows(rows.tokens, rows.media + i * SHARD_SOUNDS) for i, rows in enumerate(group)]
        groups.append(joined(shifted))
    mels, frames = (np.concatenate([shard[field] for shard in shards]) for field in range(2))
    return Pool(mels, frames, tuple(groups))
