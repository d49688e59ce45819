"""All kinds of questions, those that no picture answers too, and how frequent each is."""

from random import Random

from comparisons import describe_both, differ, nth, same, same_colour, same_shape, which
from drawings import COLOURS, SHAPES, pick
from wordings import (
    Maker,
    Things,
    Turn,
    any_thing,
    choice,
    colour,
    describe,
    is_colour,
    is_shape,
    is_thing,
    shape,
    worded,
)

COUNT = (
    "How many {picture}s are there?",
    "How many {picture}s do you see?",
    "How many {picture}s did I show you?",
    "How many {picture}s can you see?",
)


def count(rng: Random, things: Things) -> Turn:
    """How many pictures there are."""
    return Turn(worded(rng, COUNT), ("None.", "One.", "Two.")[len(things)])


TALK = {
    "Hello! Show me a picture.": (
        "Hello",
        "Hello!",
        "Hi",
        "Hi!",
        "Hey",
        "Good morning.",
        "Hi there!",
    ),
    "I am Quire's vision demo, a small model that looks at shapes.": (
        "Who are you?",
        "What are you?",
        "What is your name?",
        "What model are you?",
        "Introduce yourself.",
    ),
    "I name shapes and their colours, and I compare two pictures.": (
        "What can you do?",
        "Help",
        "Help!",
        "How can you help me?",
        "What do you do?",
        "What can I ask?",
        "What can I ask you?",
    ),
    "I am fine, thank you.": ("How are you?", "How are you doing?", "Are you well?"),
    "You are welcome.": ("Thanks", "Thanks!", "Thank you.", "Thank you!", "Great, thanks!"),
    "Goodbye!": ("Bye", "Bye!", "Goodbye", "Goodbye!", "See you!"),
    f"{', '.join([*SHAPES][:-1])} and {[*SHAPES][-1]}.".capitalize(): (
        "Which shapes do you know?",
        "What shapes do you know?",
        "What shapes can you see?",
        "Name the shapes you know.",
    ),
    f"{', '.join([*COLOURS][:-1])} and {[*COLOURS][-1]}.".capitalize(): (
        "Which colours do you know?",
        "What colours do you know?",
        "What colors do you know?",
        "Name the colours you know.",
    ),
}
NO_PICTURE = "I see no picture. Please show me one."


def talk(rng: Random, things: Things) -> Turn:
    """Small talk; who has shown a picture is not asked for one."""
    answer = pick(rng, [answer for answer in TALK if not things or "Show me" not in answer])
    return Turn(pick(rng, TALK[answer]), answer)


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
