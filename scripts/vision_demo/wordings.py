"""Questions about the thing in one picture, in many wordings, and the one right answer to each."""

import dataclasses
from collections.abc import Sequence
from random import Random

from ..media_demo.words import Turn, article, other, pick, sentence, verdict
from .shapes import COLOURS, SHAPES


@dataclasses.dataclass(frozen=True)
class Thing:
    """What one picture shows."""

    shape: str
    colour: str

    @property
    def name(self) -> str:
        """Such as "a red circle"."""
        return f"{article(self.colour)} {self.shape}"


Things = Sequence[Thing]


def any_thing(rng: Random) -> Thing:
    """Any shape in any colour."""
    return Thing(pick(rng, tuple(SHAPES)), pick(rng, tuple(COLOURS)))


def worded(rng: Random, wordings: Sequence[str], **slots: str) -> str:
    """One of the wordings with its slots filled; {color} and {picture} have several names."""
    slots.setdefault("color", pick(rng, ("colour", "color")))
    slots.setdefault("picture", pick(rng, ("picture", "picture", "image")))
    return pick(rng, wordings).format(**slots)


SHAPE = (
    "What shape is this?",
    "What shape is it?",
    "What is the shape?",
    "What shape do you see?",
    "What shape is in the {picture}?",
    "What is the shape in the {picture}?",
    "What shape does the {picture} show?",
    "What shape is the {hue} one?",
    "Which shape is this?",
    "Which shape is in the {picture}?",
    "Name the shape.",
    "Tell me the shape.",
)
COLOUR = (
    "What {color} is it?",
    "What {color} is this?",
    "What {color} is the {form}?",
    "What {color} is the shape?",
    "What is the {color}?",
    "What is the {color} of the {form}?",
    "What is the {color} of the shape?",
    "What {color} does it have?",
    "What {color} does the {form} have?",
    "Which {color} is it?",
    "Which {color} is this {form}?",
    "Name the {color}.",
    "Tell me the {color}.",
)
DESCRIBE = (
    "What is in the {picture}?",
    "What is in this {picture}?",
    "What's in the {picture}?",
    "What's in this {picture}?",
    "What is this?",
    "What's this?",
    "What is it?",
    "What do you see?",
    "What do you see in the {picture}?",
    "What can you see?",
    "What is shown here?",
    "What does the {picture} show?",
    "Describe the {picture}.",
    "Describe this {picture}.",
    "Describe it.",
    "Tell me what you see.",
    "Tell me what is in the {picture}.",
)
IS_IT = (
    "Is it {guess}?",
    "Is this {guess}?",
    "Is that {guess}?",
    "Is the shape {guess}?",
    "Is the thing in the {picture} {guess}?",
)
IS_THERE = (
    "Is there {guess} in the {picture}?",
    "Is {guess} in the {picture}?",
    "Do you see {guess}?",
    "Can you see {guess}?",
    "Does the {picture} show {guess}?",
)
CHOICE = (
    "Is it {one} or {two}?",
    "Is this {one} or {two}?",
    "Is the shape {one} or {two}?",
    "Which is it, {one} or {two}?",
    "What is it, {one} or {two}?",
)


def shape(rng: Random, things: Things) -> Turn:
    """What shape the picture shows."""
    question = worded(rng, SHAPE, hue=things[0].colour)
    return Turn(question, sentence(article(things[0].shape)))


def colour(rng: Random, things: Things) -> Turn:
    """What colour its thing has."""
    return Turn(worded(rng, COLOUR, form=things[0].shape), sentence(things[0].colour))


def describe(rng: Random, things: Things) -> Turn:
    """What the picture shows."""
    return Turn(worded(rng, DESCRIBE), sentence(things[0].name))


def is_shape(rng: Random, things: Things) -> Turn:
    """Whether it shows this shape."""
    real = things[0].shape
    asked = real if rng.random() < 0.45 else other(rng, tuple(SHAPES), real)
    question = worded(rng, IS_IT + IS_THERE, guess=article(asked))
    return Turn(question, verdict(asked == real, article(real)))


def is_colour(rng: Random, things: Things) -> Turn:
    """Whether its thing has this colour."""
    real, form = things[0].colour, things[0].shape
    asked = real if rng.random() < 0.45 else other(rng, tuple(COLOURS), real)
    wordings = (*IS_IT, f"Is the {form} {{guess}}?", f"Is this {form} {{guess}}?")
    return Turn(worded(rng, wordings, guess=asked), verdict(asked == real, real))


def is_thing(rng: Random, things: Things) -> Turn:
    """Whether it shows a thing of this shape and colour."""
    real, changed = things[0], rng.random()
    asked = Thing(
        other(rng, tuple(SHAPES), real.shape) if changed < 0.35 else real.shape,
        other(rng, tuple(COLOURS), real.colour) if 0.2 < changed < 0.55 else real.colour,
    )
    question = worded(rng, IS_IT + IS_THERE, guess=asked.name)
    return Turn(question, verdict(asked == real, real.name))


def choice(rng: Random, things: Things) -> Turn:
    """Which of two shapes or colours it is."""
    if rng.random() < 0.5:
        real, wrong = things[0].colour, other(rng, tuple(COLOURS), things[0].colour)
    else:
        real, wrong = (
            article(name) for name in (things[0].shape, other(rng, tuple(SHAPES), things[0].shape))
        )
    one, two = rng.sample((real, wrong), 2)
    return Turn(worded(rng, CHOICE, one=one, two=two), sentence(real))
