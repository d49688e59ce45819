"""All kinds of questions, those that no sound answers too, and how frequent each is."""

from random import Random

from ..media_demo.kinds import Kind
from ..media_demo.words import Turn, pick
from . import wordings
from .tones import any_sound
from .wordings import Sounds

TALK = {
    "Hello! Play me a sound.": (
        "Hello",
        "Hello!",
        "Hi",
        "Hi!",
        "Hey",
        "Good morning.",
        "Hi there!",
    ),
    "I am Quire's audio demo, a small model that listens to tones.": (
        "Who are you?",
        "What are you?",
        "What is your name?",
        "What model are you?",
        "Introduce yourself.",
    ),
    "I count tones, tell high ones from low ones, and compare two sounds.": (
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
}
NO_SOUND = "I hear no sound. Please play me one."


def talk(rng: Random, sounds: Sounds) -> Turn:
    """Small talk; who has played a sound is not asked for one."""
    answer = pick(rng, [answer for answer in TALK if not sounds or "Play me" not in answer])
    return Turn(pick(rng, TALK[answer]), answer)


def no_sound(rng: Random, sounds: Sounds) -> Turn:
    """A question about a sound that is not there."""
    kinds = [kind for number in (1, 2) for kind in KINDS[number].values() if kind.make != talk]
    kind, imagined = pick(rng, kinds), []
    while not imagined or not kind.fits(imagined):
        imagined = [any_sound(rng) for _ in range(2)]
    return Turn(kind.make(rng, imagined).question, NO_SOUND)


KINDS: dict[int, dict[str, Kind]] = {
    0: {"talk": Kind(1, talk), "no_sound": Kind(1, no_sound)},
    1: {
        "count": Kind(3, wordings.count),
        "is_count": Kind(2, wordings.is_count),
        "count_pitch": Kind(3, wordings.count_pitch),
        "pitch": Kind(4, wordings.pitch),
        "is_pitch": Kind(2.5, wordings.is_pitch),
        "describe": Kind(5, wordings.describe),
        "higher": Kind(6, wordings.higher, wordings.two_apart),
        "step": Kind(4, wordings.step, wordings.two_apart),
        "highest": Kind(5, wordings.highest, wordings.all_apart),
        "talk": Kind(0.3, talk),
    },
    2: {
        "more": Kind(4, wordings.more),
        "same_count": Kind(3, wordings.same_count),
        "nth": Kind(4, wordings.nth),
        "higher_sound": Kind(6, wordings.higher_sound, wordings.tops_apart),
        "talk": Kind(0.3, talk),
    },
}
"""By number of sounds."""
