"""All kinds of questions, those that no picture answers too, and how frequent each is."""

from random import Random

from ..media_demo.kinds import Kind
from ..media_demo.words import Turn, pick
from .clips import Clip
from .comparisons import (
    describe_both,
    differ,
    nth,
    same,
    same_colour,
    same_shape,
    which,
)
from .movements import (
    does_move,
    does_move_so,
    happens,
    moves,
    moving_colour,
    moving_shape,
    something_moves,
    stands,
    this_or_that,
    way,
)
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

TALK = small_talk(
    "I name shapes and their colours, compare two pictures, and see what moves in a clip."
)
NO_PICTURE = "I see no picture. Please show me one."


def talk(rng: Random, things: Things) -> Turn:
    """Small talk with this model."""
    return any_talk(rng, things, TALK)


def no_picture(rng: Random, things: Things) -> Turn:
    """A question about a picture that is not there."""
    if rng.random() < 0.15:
        clip = Clip(any_thing(rng), any_thing(rng), "left")
        return Turn(pick(rng, (moves, way))(rng, [clip]).question, NO_PICTURE)
    imagined = [any_thing(rng) for _ in range(2)]
    maker = pick(rng, (shape, colour, describe, is_shape, is_colour, differ, which))
    return Turn(maker(rng, imagined).question, NO_PICTURE)


NOTHING, PICTURE, PICTURES, CLIP = "nothing", "picture", "pictures", "clip"
KINDS: dict[str, dict[str, Kind]] = {
    NOTHING: {"talk": Kind(3, talk), "no_picture": Kind(3, no_picture), "count": Kind(0.5, count)},
    PICTURE: {
        "shape": Kind(3, shape),
        "colour": Kind(3, colour),
        "describe": Kind(5, describe),
        "is_shape": Kind(2.5, is_shape),
        "is_colour": Kind(2.5, is_colour),
        "is_thing": Kind(3, is_thing),
        "choice": Kind(2, choice),
        "count": Kind(0.4, count),
        "talk": Kind(0.3, talk),
    },
    PICTURES: {
        "which": Kind(5, which),
        "differ": Kind(5, differ),
        "same": Kind(3, same),
        "same_colour": Kind(3, same_colour),
        "same_shape": Kind(3, same_shape),
        "describe_both": Kind(5, describe_both),
        "nth": Kind(4, nth),
        "count": Kind(0.4, count),
        "talk": Kind(0.3, talk),
    },
    CLIP: {
        "moves": Kind(4, moves),
        "stands": Kind(3, stands),
        "way": Kind(5, way, something_moves),
        "happens": Kind(6, happens),
        "moving_colour": Kind(2, moving_colour, something_moves),
        "moving_shape": Kind(2, moving_shape, something_moves),
        "does_move": Kind(2, does_move),
        "does_move_so": Kind(3, does_move_so, something_moves),
        "this_or_that": Kind(3, this_or_that, something_moves),
        "talk": Kind(0.3, talk),
    },
}
"""By what is shown: nothing, one picture, two pictures, or a clip."""
