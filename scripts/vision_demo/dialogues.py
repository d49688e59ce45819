"""Conversations about drawings as text: made from a seed, split into training and held out."""

import dataclasses
from collections.abc import Sequence
from random import Random
from typing import Any

from PIL import Image

from ..media_demo.words import Turn, pick
from .drawings import draw
from .kinds import KINDS
from .wordings import Thing, Things, any_thing

IMAGE = "<image>"
END = "</s>"
ASSISTANT = "ASSISTANT:"

Segment = tuple[str, bool]
"""A piece of a text, and whether the model is meant to write it."""

SYSTEMS = ("You are a helpful assistant.", "Answer briefly.", "You look at pictures.")


@dataclasses.dataclass(frozen=True)
class Dialogue:
    """Pictures and questions about them; the last answer is what a test asks for."""

    kind: str
    """Of the last question."""
    things: tuple[Thing, ...]
    """What the pictures show, in their order in the text."""
    segments: tuple[Segment, ...]

    @property
    def prompt(self) -> str:
        """Everything before the last answer."""
        return "".join(text for text, _ in self.segments[:-1])

    @property
    def answer(self) -> str:
        """What the model has to write, without its stop token."""
        return self.segments[-1][0].removesuffix(END).removeprefix(" ")


def shown(rng: Random, count: int) -> Things:
    """What `count` pictures show. Of two, often the shape or the colour is the same."""
    first = any_thing(rng)
    if count < 2:
        return (first,)[:count]
    second = any_thing(rng)
    same_shape, same_colour = pick(
        rng, ((True, True), (True, False), (False, True), (False, False)), (2, 2, 2, 3)
    )
    shape = first.shape if same_shape else second.shape
    return first, Thing(shape, first.colour if same_colour else second.colour)


def turn(rng: Random, kind: str, things: Things) -> Turn:
    """A question of that kind, sometimes in the words of someone in a hurry."""
    made = KINDS[len(things)][kind][1](rng, things)
    question = made.question
    if rng.random() < 0.08:
        question = question[0].lower() + question[1:]
    if rng.random() < 0.06:
        question = question.rstrip("?.!")
    if kind != "talk" and rng.random() < 0.05:
        question += pick(rng, (" Answer briefly.", " Be brief.", " Please."))
    return Turn(question, made.answer)


def with_pictures(rng: Random, question: str, count: int) -> str:
    """A user's turn that shows `count` pictures, most often in front as in the template."""
    place = pick(rng, ("front", "behind", "named"), (8, 1, 1)) if count else "front"
    if place == "behind":
        return question + f"\n{IMAGE}" * count
    if place == "named" and count == 2:
        form = pick(rng, ("The first: {}\nThe second: {}\n", "Picture 1: {}\nPicture 2: {}\n"))
        return form.format(IMAGE, IMAGE) + question
    return f"{IMAGE}\n" * count + question


def render(turns: Sequence[tuple[str, str]], system: str = "") -> tuple[Segment, ...]:
    """The texts of users and the answers to them, as the model's chat template writes them."""
    segments: list[Segment] = []
    before = f"{system} " if system else ""
    for user, answer in turns:
        segments.append((f"{before}USER: {user} {ASSISTANT}", False))
        segments.append((f" {answer}{END}", True))
        before = ""
    return tuple(segments)


def asked(
    rng: Random, kinds: Sequence[str], things: Things, pictures: int
) -> list[tuple[str, str]]:
    """A question of each kind and its answer; the first one shows so many pictures."""
    pairs = []
    for i, kind in enumerate(kinds):
        made = turn(rng, kind, things)
        pairs.append((with_pictures(rng, made.question, 0 if i else pictures), made.answer))
    return pairs


def conversation(rng: Random, kinds: Sequence[str], things: Things) -> Dialogue:
    """A question of each of the kinds, all pictures shown in the first turn."""
    pairs = asked(rng, kinds, things, len(things))
    system = pick(rng, SYSTEMS) if rng.random() < 0.06 else ""
    return Dialogue(kinds[-1], tuple(things), render(pairs, system))


def one_by_one(rng: Random, kinds: Sequence[str], things: Things) -> Dialogue:
    """As `conversation` of two pictures, but the second one is shown in the second turn.

    The first question is of any kind about one picture, those in `kinds` are about both.
    """
    pairs = asked(rng, [random_kind(rng, 1)], things[:1], 1) + asked(rng, kinds, things, 1)
    return Dialogue(kinds[-1], tuple(things), render(pairs))


def random_kind(rng: Random, pictures: int) -> str:
    """A kind of question about that many pictures."""
    kinds = KINDS[pictures]
    return pick(rng, tuple(kinds), [share for share, _ in kinds.values()])


def training_dialogue(rng: Random, pictures: int) -> Dialogue:
    """A conversation of one to four questions about that many pictures."""
    kinds = [random_kind(rng, pictures) for _ in range(pick(rng, (1, 2, 3, 4), (4, 2, 3, 3)))]
    make = one_by_one if pictures == 2 and rng.random() < 0.1 else conversation
    return make(rng, kinds, shown(rng, pictures))


LATER = "later_turn"
HELD_OUT_KINDS = (*dict.fromkeys(kind for kinds in KINDS.values() for kind in kinds), LATER)


@dataclasses.dataclass(frozen=True)
class Question:
    """A dialogue with the pictures it is about."""

    kind: str
    prompt: str
    answer: str
    pictures: tuple[Image.Image, ...]

    @property
    def data(self) -> dict[str, Any]:
        """`multi_modal_data` of the engine."""
        return {"image": self.pictures}


def held_out(kind: str, count: int) -> list[Question]:
    """`count` questions about drawings that are never in training, always the same ones."""
    rng = Random(f"held out {kind}")
    return [held_out_question(rng, kind) for _ in range(count)]


def held_out_question(rng: Random, kind: str) -> Question:
    """One question with new drawings."""
    pictures = pick(rng, [number for number, kinds in KINDS.items() if kind in kinds] or (1, 2))
    kinds = [random_kind(rng, pictures) for _ in range(3)] if kind == LATER else [kind]
    make = one_by_one if kind == LATER and pictures == 2 else conversation
    dialogue = make(rng, kinds, shown(rng, pictures))
    images = tuple(draw(rng, thing.shape, thing.colour) for thing in dialogue.things)
    return Question(kind, dialogue.prompt, dialogue.answer, images)
