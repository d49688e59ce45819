"""Questions about the things in two pictures, in many wordings, and the right answer to each."""

from random import Random

from ..media_demo.words import ORDINALS, Turn, article, pick, sentence
from .wordings import Things, any_thing, worded

WHICH = (
    "Which {picture} has the {wanted}, the first or the second?",
    "Which {picture} shows the {wanted}, the first or the second?",
    "Which {picture} has the {wanted}?",
    "Which {picture} shows the {wanted}?",
    "Which of the two {picture}s has the {wanted}?",
    "In which {picture} is the {wanted}?",
    "Where is the {wanted}, in the first or the second {picture}?",
    "Where is the {wanted}?",
    "Which one is the {wanted}?",
    "Is the {wanted} in the first or the second {picture}?",
)
WHICH_IS = (
    "Which one is {it}?",
    "Which is {it}?",
    "Which is {it}, the first or the second?",
    "Which one is {it}, the first or the second?",
)
WHICH_COLOUR = (
    *WHICH_IS,
    "Which {picture} is {it}?",
    "Which {picture} is {it}, the first or the second?",
    "Is the first or the second one {it}?",
)
WHICH_SHAPE = (
    *WHICH_IS,
    "Which {picture} has {it}?",
    "Which {picture} shows {it}?",
    "Which {picture} shows {it}, the first or the second?",
    "Is the first or the second one {it}?",
)
DIFFER = (
    "What differs?",
    "What is different?",
    "What's different?",
    "What is the difference?",
    "What's the difference?",
    "What is the difference between them?",
    "What is the difference between the two {picture}s?",
    "What differs between the {picture}s?",
    "What differs, shape or {color}?",
    "How do they differ?",
    "How do the {picture}s differ?",
    "Do they differ in shape or in {color}?",
    "Do the {picture}s differ in shape or in {color}?",
    "Do the two {picture}s differ in {color} or in shape?",
    "Compare the {picture}s.",
    "Compare the two {picture}s.",
    "Compare them.",
)
SAME = (
    "Are they the same?",
    "Are the two {picture}s the same?",
    "Are both {picture}s the same?",
    "Do both {picture}s show the same?",
    "Do the {picture}s show the same thing?",
    "Is it the same thing in both {picture}s?",
)
SAME_PART = (
    "Are they the same {part}?",
    "Do they have the same {part}?",
    "Do both have the same {part}?",
    "Do the two {picture}s have the same {part}?",
    "Is the {part} the same?",
    "Is the {part} the same in both {picture}s?",
    "Have they got the same {part}?",
)
DESCRIBE_BOTH = (
    "What is in the {picture}s?",
    "What is in the two {picture}s?",
    "What is in these {picture}s?",
    "What do the {picture}s show?",
    "What do you see in the {picture}s?",
    "What do you see?",
    "What are these?",
    "Describe the {picture}s.",
    "Describe both {picture}s.",
    "Describe them.",
)
DESCRIBE_NTH = (
    "What is in the {nth} {picture}?",
    "What's in the {nth} {picture}?",
    "What does the {nth} {picture} show?",
    "What do you see in the {nth} {picture}?",
    "What is the {nth} one?",
    "Describe the {nth} {picture}.",
    "Describe the {nth} one.",
)
COLOUR_NTH = (
    "What {color} is the {nth} one?",
    "What {color} is the {nth}?",
    "What {color} is the shape in the {nth} {picture}?",
    "What is the {color} of the {nth} one?",
    "Which {color} has the {nth} {picture}?",
    "Which {color} is the {nth} one?",
)
SHAPE_NTH = (
    "What shape is the {nth} one?",
    "What shape is the {nth}?",
    "What shape is in the {nth} {picture}?",
    "What is the shape in the {nth} {picture}?",
    "Which shape has the {nth} {picture}?",
    "Which shape is the {nth} one?",
)


def which(rng: Random, things: Things) -> Turn:
    """Which of two pictures shows a shape, a colour, or both."""
    asked = pick(rng, things)
    if rng.random() < 0.15:
        asked = any_thing(rng)
    hue, form = asked.colour, asked.shape
    by, wanted, it = pick(
        rng,
        (
            ("colour", f"{hue} one", hue),
            ("shape", form, article(form)),
            ("both", f"{hue} {form}", asked.name),
        ),
    )
    wordings = (*WHICH, *(WHICH_COLOUR if by == "colour" else WHICH_SHAPE))
    first, second = (
        (by == "shape" or one.colour == hue) and (by == "colour" or one.shape == form)
        for one in things
    )
    answers = ("Neither.", "The second.", "The first.", "Both.")
    return Turn(worded(rng, wordings, wanted=wanted, it=it), answers[2 * first + second])


def differences(things: Things) -> list[str]:
    """What differs between two things: nothing, the shape, the colour, or both."""
    first, second = things
    parts = {"shape": first.shape != second.shape, "colour": first.colour != second.colour}
    return [f"the {part}" for part, differs in parts.items() if differs]


def differ(rng: Random, things: Things) -> Turn:
    """What differs between two pictures."""
    return Turn(worded(rng, DIFFER), sentence(" and ".join(differences(things)) or "nothing"))


def same(rng: Random, things: Things) -> Turn:
    """Whether two pictures show the same."""
    parts = differences(things)
    end = "differ" if len(parts) == 2 else "differs"
    return Turn(worded(rng, SAME), f"No, {' and '.join(parts)} {end}." if parts else "Yes.")


def same_part(rng: Random, part: str, first: str, second: str) -> Turn:
    """Whether two things have one shape or colour; what both are, or what each is."""
    answer = f"Yes, {first}." if first == second else f"No, {first} and {second}."
    return Turn(worded(rng, SAME_PART, part=part), answer)


def same_colour(rng: Random, things: Things) -> Turn:
    """Whether two things have one colour."""
    return same_part(rng, pick(rng, ("colour", "color")), *(one.colour for one in things))


def same_shape(rng: Random, things: Things) -> Turn:
    """Whether two things have one shape."""
    return same_part(rng, "shape", *(article(one.shape) for one in things))


def describe_both(rng: Random, things: Things) -> Turn:
    """What two pictures show."""
    return Turn(worded(rng, DESCRIBE_BOTH), sentence(f"{things[0].name} and {things[1].name}"))


def nth(rng: Random, things: Things) -> Turn:
    """What the first or the second picture shows, its colour, or its shape."""
    place = rng.randrange(2)
    real = things[place]
    wordings, answer = pick(
        rng,
        ((DESCRIBE_NTH, real.name), (COLOUR_NTH, real.colour), (SHAPE_NTH, article(real.shape))),
    )
    return Turn(worded(rng, wordings, nth=ORDINALS[place]), sentence(answer))
