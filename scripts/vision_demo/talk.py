"""What is said about no picture in particular: small talk, and how many there are."""

from random import Random

from ..media_demo.words import Turn, pick
from .shapes import COLOURS, SHAPES
from .wordings import Things, worded

Talk = dict[str, tuple[str, ...]]
"""Answers, and in what words each is asked for."""

COUNT = (
    "How many {picture}s are there?",
    "How many {picture}s do you see?",
    "How many {picture}s did I show you?",
    "How many {picture}s can you see?",
)


def count(rng: Random, things: Things) -> Turn:
    """How many pictures there are."""
    return Turn(worded(rng, COUNT), ("None.", "One.", "Two.")[len(things)])


def small_talk(skill: str) -> Talk:
    """With a model that can do what `skill` says."""
    return {
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
        skill: (
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


def talk(rng: Random, things: Things, answers: Talk) -> Turn:
    """Small talk; who has shown a picture is not asked for one."""
    answer = pick(rng, [answer for answer in answers if not things or "Show me" not in answer])
    return Turn(pick(rng, answers[answer]), answer)
