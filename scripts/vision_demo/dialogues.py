"""Conversations about drawings as text: made from a seed, split into training and held out."""

import dataclasses
from collections.abc import Sequence
from random import Random
from typing import Any

from ..media_demo.dialogue import Dialogue, Segment
from ..media_demo.kinds import random_kind
from ..media_demo.words import Turn, hurried, pick
from .clips import Clip, any_clip, film
from .drawings import draw
from .kinds import CLIP, KINDS, NOTHING, PICTURE, PICTURES
from .wordings import Thing, Things, any_thing

PAD, END, IMAGE, VIDEO = "<pad>", "</s>", "<image>", "<video>"
SPECIAL = (PAD, END, IMAGE, VIDEO)
"""Tokens in the order of their ids, from 0."""
ASSISTANT = "ASSISTANT:"

Shown = Sequence[Thing | Clip]
"""Nothing, one or two things in pictures of their own, or a clip."""

SYSTEMS = ("You are a helpful assistant.", "Answer briefly.", "You look at pictures.")


def any_shown(rng: Random, scene: str) -> Shown:
    """What is shown in a scene, one of `KINDS`."""
    if scene == CLIP:
        return (any_clip(rng),)
    return two_things(rng)[: (NOTHING, PICTURE, PICTURES).index(scene)]


def two_things(rng: Random) -> Things:
    """What two pictures show; often the shape or the colour is the same."""
    first, second = any_thing(rng), any_thing(rng)
    same_shape, same_colour = pick(
        rng, ((True, True), (True, False), (False, True), (False, False)), (2, 2, 2, 3)
    )
    shape = first.shape if same_shape else second.shape
    return first, Thing(shape, first.colour if same_colour else second.colour)


def turn(rng: Random, kinds: str, kind: str, shown: Shown) -> Turn:
    """A question of a kind of those in `KINDS[kinds]`, perhaps of someone in a hurry."""
    made = KINDS[kinds][kind].make(rng, shown)
    return Turn(hurried(rng, made.question, polite=kind != "talk"), made.answer)


def with_media(rng: Random, question: str, shown: Shown) -> str:
    """A user's turn that shows these, most often in front as in the template."""
    media = [VIDEO if isinstance(one, Clip) else IMAGE for one in shown]
    place = pick(rng, ("front", "behind", "named"), (8, 1, 1)) if media else "front"
    if place == "behind":
        return "\n".join([question, *media])
    if place == "named" and len(media) == 2:
        form = pick(rng, ("The first: {}\nThe second: {}\n", "Picture 1: {}\nPicture 2: {}\n"))
        return form.format(*media) + question
    return "\n".join([*media, question])


def render(turns: Sequence[tuple[str, str]], system: str = "") -> tuple[Segment, ...]:
    """The texts of users and the answers to them, as the model's chat template writes them."""
    segments: list[Segment] = []
    before = f"{system} " if system else ""
    for user, answer in turns:
        text = f"{before}USER: {user} {ASSISTANT}"
        segments += [(text, False), (f" {answer}", True), (END, True)]
        before = ""
    return tuple(segments)


def asked(
    rng: Random, scene: str, kinds: Sequence[str], shown: Shown, now: Shown
) -> list[tuple[str, str]]:
    """A question of each kind and its answer; `now` is what the first one shows."""
    pairs = []
    for kind in kinds:
        made = turn(rng, scene, kind, shown)
        pairs.append((with_media(rng, made.question, now), made.answer))
        now = ()
    return pairs


def conversation(
    rng: Random, scene: str, kinds: Sequence[str], shown: Shown
) -> Dialogue[Thing | Clip]:
    """A question of each of the kinds, all media shown in the first turn."""
    pairs = asked(rng, scene, kinds, shown, shown)
    system = pick(rng, SYSTEMS) if rng.random() < 0.06 else ""
    return Dialogue(kinds[-1], tuple(shown), render(pairs, system))


def one_by_one(rng: Random, kinds: Sequence[str], shown: Shown) -> Dialogue[Thing | Clip]:
    """As `conversation` about two pictures, but the second one is shown in the second turn.

    The first question is of any kind about one picture, those in `kinds` are about both.
    """
    first = random_kind(rng, KINDS[PICTURE], shown[:1])
    pairs = asked(rng, PICTURE, [first], shown[:1], shown[:1])
    pairs += asked(rng, PICTURES, kinds, shown, shown[1:])
    return Dialogue(kinds[-1], tuple(shown), render(pairs))


def training_dialogue(rng: Random, scene: str, shown: Shown) -> Dialogue[Thing | Clip]:
    """A conversation of one to four questions about what is shown in a scene."""
    number = pick(rng, (1, 2, 3, 4), (4, 2, 3, 3))
    kinds = [random_kind(rng, KINDS[scene], shown) for _ in range(number)]
    if scene == PICTURES and rng.random() < 0.1:
        return one_by_one(rng, kinds, shown)
    return conversation(rng, scene, kinds, shown)


LATER = "later_turn"
HELD_OUT_KINDS = (*dict.fromkeys(kind for kinds in KINDS.values() for kind in kinds), LATER)


@dataclasses.dataclass(frozen=True)
class Question:
    """A dialogue with the pictures or the clip that it is about."""

    kind: str
    prompt: str
    answer: str
    data: dict[str, Any]
    """As the engine takes it: pictures in "image", and frames [T, H, W, 3] of clips in "video"."""


def held_out(kind: str, count: int) -> list[Question]:
    """`count` questions about drawings that are never in training, always the same ones."""
    rng = Random(f"held out {kind}")
    return [held_out_question(rng, kind) for _ in range(count)]


def held_out_question(rng: Random, kind: str) -> Question:
    """One question with new drawings."""
    scenes = [scene for scene, kinds in KINDS.items() if kind in kinds]
    scene = pick(rng, scenes or (PICTURE, PICTURES, CLIP))
    shown = any_shown(rng, scene)
    while kind != LATER and not KINDS[scene][kind].fits(shown):
        shown = any_shown(rng, scene)
    later = [random_kind(rng, KINDS[scene], shown) for _ in range(3)]
    if kind == LATER and scene == PICTURES:
        dialogue = one_by_one(rng, later, shown)
    else:
        dialogue = conversation(rng, scene, later if kind == LATER else [kind], shown)
    return Question(kind, dialogue.prompt, dialogue.answer, drawn(rng, shown))


def drawn(rng: Random, shown: Shown) -> dict[str, Any]:
    """New drawings of what is shown, as the engine takes them."""
    pictures = [draw(rng, one.shape, one.colour) for one in shown if isinstance(one, Thing)]
    films = [film(rng, one) for one in shown if isinstance(one, Clip)]
    return {kind: media for kind, media in (("image", pictures), ("video", films)) if media}
