"""What all makers of the demo model's text share: turns, the split, and small tools."""

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from random import Random
from typing import TypeVar

Item = TypeVar("Item")

HELD_PERCENT = 12

PINNED = frozenset(
    {
        "The capital of France is",
        "The president of the United States is",
        "The future of AI is",
        "What is the capital of France?",
        "What colour is the sky?",
        "The day after Monday is",
        "What day comes after Monday?",
        "12 + 30",
        "San Francisco is a",
        "Who won the world series in 2020?",
        "Who are you?",
        "What is your name?",
        "Hello",
        "Tell me a joke.",
        "Write an essay about the importance of higher education.",
        "What's the weather like in San Francisco?",
    }
)
"""Questions that documents and tests ask by name: they always belong to training."""


@dataclasses.dataclass(frozen=True)
class Turn:
    """One question and its only right answer."""

    question: str
    answer: str
    key: str
    """What the split goes by: a key is trained on or held out, in every wording around it."""
    plain: bool = False
    """True where `question` is a text to go on with, False where it is a user's turn in a chat."""


Maker = Callable[[Random], Turn]


def is_held(key: str) -> bool:
    """Whether questions with this key are held out. Depends on nothing but the key."""
    return key not in PINNED and zlib.crc32(key.encode()) % 100 < HELD_PERCENT


def draw(rng: Random, maker: Maker, held: bool) -> Turn:
    """A turn of `maker` from the held-out side, or from the side for training."""
    while is_held((turn := maker(rng)).key) != held:
        pass
    return turn


def pick(rng: Random, items: Sequence[Item], weights: Sequence[float] | None = None) -> Item:
    """One of `items`, evenly or by `weights`."""
    return rng.choices(items, weights)[0] if weights else items[int(rng.random() * len(items))]


def article(noun: str) -> str:
    """`noun` with "a" or "an" before it."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def capitalized(text: str) -> str:
    """`text` with its first letter in upper case and the rest as it is."""
    return text[:1].upper() + text[1:]
