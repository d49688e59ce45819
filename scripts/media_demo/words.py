"""What questions about media and their answers are made of."""

import dataclasses
from collections.abc import Sequence
from random import Random
from typing import TypeVar

Item = TypeVar("Item")

NUMBERS = ("no", "one", "two", "three", "four", "five")
ORDINALS = ("first", "second", "third", "fourth", "fifth")


@dataclasses.dataclass(frozen=True)
class Turn:
    """A question, and its answer word for word."""

    question: str
    answer: str


def pick(rng: Random, items: Sequence[Item], weights: Sequence[float] | None = None) -> Item:
    """One of `items`, evenly or by `weights`."""
    return rng.choices(items, weights)[0] if weights else items[int(rng.random() * len(items))]


def other(rng: Random, items: Sequence[Item], item: Item) -> Item:
    """One of `items` that is not `item`."""
    return pick(rng, [each for each in items if each != item])


def article(noun: str) -> str:
    """`noun` with "a" or "an" before it."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def sentence(text: str) -> str:
    """`text` with a capital and a full stop."""
    return f"{text[:1].upper()}{text[1:]}."


def verdict(right: bool, real: str) -> str:
    """Yes, or what it is in truth."""
    return "Yes." if right else f"No, it is {real}."


def hurried(rng: Random, question: str, polite: bool = True) -> str:
    """The question, sometimes in the words of someone in a hurry, who may be `polite`."""
    if rng.random() < 0.08:
        question = question[0].lower() + question[1:]
    if rng.random() < 0.06:
        question = question.rstrip("?.!")
    if polite and rng.random() < 0.05:
        question += pick(rng, (" Answer briefly.", " Be brief.", " Please."))
    return question
