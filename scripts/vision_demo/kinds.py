"""All kinds of questions, those that no picture answers too, and how frequent each is."""

from collections.abc import Callable
from random import Random

from ..media_demo.words import Turn, pick
from .comparisons import describe_both, differ, nth, same, same_colour, same_shape, which
from .talk import count, small_talk, talk as any_talk
from .wordings import (
    Things,
    any_thing,
    choice,
    colour,
    describe,
    is_colour,
    is_shape,
    is_thing,
    shape,
)

Maker = Callable[[Random, Things], Turn]

TALK = small_talk("I name shapes and their colours, and I compare two pictures.")
NO_PICTURE = "I see no picture. Please show me one."


def talk(rng: Random, things: Things) -> Turn:
    """Small talk with this model."""
    return any_talk(rng, things, TALK)


def no_picture(rng: Random, things: Things) -> Turn:
    """A question about a picture that is not there."""
    imagined = [any_thing(rng) for _ in range(2)]
    maker = pick(rng, (shape, colour, describe, is_shape, is_colour, differ, which))
    return Turn(maker(rng, imagined).question, NO_PICTURE)


KINDS: dict[int, dict[str, tuple[float, Maker]]] = {
    0: {"talk": (3, talk), "no_picture": (3, no_picture), "count": (0.5, count)},
    1: {
        "shape": (3, shape),
        "colour": (3, colour),
        "describe": (5, describe),
        "is_shape": (2.5, is_shape),
        "is_colour": (2.5, is_colour),
        "is_thing": (3, is_thing),
        "choice": (2, choice),
        "count": (0.4, count),
        "talk": (0.3, talk),
    },
    2: {
        "which": (5, which),
        "differ": (5, differ),
        "same": (3, same),
        "same_colour": (3, same_colour),
        "same_shape": (3, same_shape),
        "describe_both": (5, describe_both),
        "nth": (4, nth),
        "count": (0.4, count),
        "talk": (0.3, talk),
    },
}
"""By number of pictures, every kind of question: its share, and its maker."""
