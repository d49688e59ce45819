"""Questions about a clip, in many wordings, and the right answer to each."""

from collections.abc import Sequence
from random import Random

from ..media_demo.words import Turn, article, other, pick, sentence
from .clips import DIRECTIONS, Clip
from .wordings import Thing, worded as any_worded

Clips = Sequence[Clip]
"""One of them."""

MOVES = (
    "What moves?",
    "What is moving?",
    "What moves here?",
    "What moves in the {clip}?",
    "What is moving in the {clip}?",
    "Which thing moves?",
    "Which one moves?",
)
STANDS = (
    "What stands still?",
    "What does not move?",
    "What doesn't move?",
    "What is still?",
    "What stands still in the {clip}?",
    "Which thing does not move?",
)
WAY = (
    "Which way does it move?",
    "Which way does it go?",
    "Which way is it moving?",
    "Which way does the {form} move?",
    "Which way does the {hue} {form} move?",
    "Which way does the {hue} one go?",
    "Where does it move?",
    "Where does the {form} go?",
    "In which direction does it move?",
    "In what direction does the {form} move?",
    "What direction does it move in?",
    "What is the direction?",
)
HAPPENS = (
    "What happens?",
    "What happens here?",
    "What happens in the {clip}?",
    "What is happening?",
    "What do you see?",
    "What do you see in the {clip}?",
    "What is in the {clip}?",
    "What does the {clip} show?",
    "Describe the {clip}.",
    "Describe this {clip}.",
    "Describe what happens.",
    "Tell me what happens.",
)
MOVING_COLOUR = (
    "What {color} is the thing that moves?",
    "What {color} is the moving shape?",
    "What {color} is what moves?",
    "Which {color} has the moving thing?",
    "What is the {color} of what moves?",
)
MOVING_SHAPE = (
    "What shape moves?",
    "What shape is moving?",
    "Which shape moves?",
    "Which shape is moving?",
    "What shape has the thing that moves?",
)
DOES_MOVE = (
    "Does {it} move?",
    "Does {it} move in the {clip}?",
    "Is {it} moving?",
)
DOES_MOVE_SO = (
    "Does it move {way}?",
    "Does it go {way}?",
    "Is it moving {way}?",
    "Does the {form} move {way}?",
    "Is the {form} moving {way}?",
    "Does the {hue} {form} go {way}?",
)
THIS_OR_THAT = (
    "Does it move {one} or {two}?",
    "Does it go {one} or {two}?",
    "Is it moving {one} or {two}?",
    "Does the {form} move {one} or {two}?",
    "Which way does it move, {one} or {two}?",
)


def worded(rng: Random, wordings: Sequence[str], **slots: str) -> str:
    """As that of pictures; {clip} has several names, too."""
    return any_worded(rng, wordings, clip=pick(rng, ("clip", "clip", "video", "film")), **slots)


def named(thing: Thing | None) -> str:
    """Such as "A red circle." """
    return sentence(thing.name if thing else "nothing")


def moves(rng: Random, clips: Clips) -> Turn:
    """What moves."""
    return Turn(worded(rng, MOVES), named(clips[0].moving))


def stands(rng: Random, clips: Clips) -> Turn:
    """What stands still."""
    return Turn(worded(rng, STANDS), named(clips[0].still))


def mover(clip: Clip) -> Thing:
    """What moves in a clip in which something does."""
    assert clip.moving is not None
    return clip.moving


def way(rng: Random, clips: Clips) -> Turn:
    """Where it moves."""
    thing = mover(clips[0])
    question = worded(rng, WAY, form=thing.shape, hue=thing.colour)
    return Turn(question, sentence(clips[0].direction))


def happens(rng: Random, clips: Clips) -> Turn:
    """What moves where, and what stands still."""
    clip, parts = clips[0], []
    if clip.moving:
        parts.append(f"{clip.moving.name} moves {clip.direction}")
    if clip.still:
        parts.append(f"{clip.still.name} stands still")
    return Turn(worded(rng, HAPPENS), sentence(" and ".join(parts)))


def moving_colour(rng: Random, clips: Clips) -> Turn:
    """What colour it has that moves."""
    return Turn(worded(rng, MOVING_COLOUR), sentence(mover(clips[0]).colour))


def moving_shape(rng: Random, clips: Clips) -> Turn:
    """What shape it has that moves."""
    return Turn(worded(rng, MOVING_SHAPE), sentence(article(mover(clips[0]).shape)))


def does_move(rng: Random, clips: Clips) -> Turn:
    """Whether one of the things moves."""
    there = [thing for thing in (clips[0].moving, clips[0].still) if thing]
    asked = pick(rng, there)
    forms = {f"the {asked.colour} {asked.shape}"}
    if len({thing.shape for thing in there}) == len(there):
        forms.add(f"the {asked.shape}")
    answer = "Yes." if asked == clips[0].moving else "No, it stands still."
    return Turn(worded(rng, DOES_MOVE, it=pick(rng, sorted(forms))), answer)


def in_words(rng: Random, direction: str) -> str:
    """Such as "to the left"."""
    if direction in ("left", "right"):
        return pick(rng, (direction, f"to the {direction}"))
    return pick(rng, (direction, f"{direction}wards"))


def does_move_so(rng: Random, clips: Clips) -> Turn:
    """Whether it moves in one direction."""
    real, thing = clips[0].direction, mover(clips[0])
    asked = real if rng.random() < 0.45 else other(rng, DIRECTIONS, real)
    slots = {"form": thing.shape, "hue": thing.colour, "way": in_words(rng, asked)}
    question = worded(rng, DOES_MOVE_SO, **slots)
    return Turn(question, "Yes." if asked == real else f"No, it moves {real}.")


def this_or_that(rng: Random, clips: Clips) -> Turn:
    """In which of two directions it moves, most often of opposite ones."""
    real = clips[0].direction
    opposite = DIRECTIONS[DIRECTIONS.index(real) - 2]
    wrong = opposite if rng.random() < 0.7 else other(rng, DIRECTIONS, real)
    one, two = rng.sample((real, wrong), 2)
    question = worded(rng, THIS_OR_THAT, one=one, two=two, form=mover(clips[0]).shape)
    return Turn(question, sentence(real))


def something_moves(clips: Clips) -> bool:
    """Whether it is not all still."""
    return clips[0].moving is not None
