"""What drawings are made of: outlines of shapes, shades of colours, and grounds, from a seed."""

import dataclasses
import math
from collections.abc import Callable
from random import Random

import numpy as np
from PIL import Image

from ..media_demo.words import pick

Point = tuple[float, float]
Colour = tuple[int, int, int]

SHORT_SIDE = (40, 320)
"""Least and most pixels of a picture's short side."""
JITTER = 12
"""How far a channel may be from the mixture of a colour's shades."""

COLOURS: dict[str, tuple[Colour, ...]] = {
    "red": ((255, 0, 0), (210, 25, 35), (240, 70, 60)),
    "orange": ((255, 165, 0), (255, 140, 0), (240, 130, 35)),
    "yellow": ((255, 255, 0), (250, 225, 30), (255, 235, 90)),
    "green": ((0, 128, 0), (0, 220, 40), (50, 160, 80)),
    "blue": ((0, 0, 255), (30, 90, 220), (60, 120, 240)),
    "purple": ((128, 0, 128), (150, 60, 190), (110, 30, 150)),
    "black": ((0, 0, 0), (30, 30, 30), (15, 15, 25)),
    "grey": ((128, 128, 128), (105, 105, 110), (160, 160, 160)),
}
"""Shades of each colour; any mixture of them is that colour too."""


@dataclasses.dataclass(frozen=True)
class Outline:
    """A polygon in the unit circle, and one that is cut out of it."""

    points: list[Point]
    hole: list[Point] = dataclasses.field(default_factory=list)


def ring_of_points(count: int, radius: float = 1.0, turn: float = 0.0) -> list[Point]:
    """The corners of a regular polygon around the origin, the first one at the top."""
    angles = (math.tau * (i + turn) / count for i in range(count))
    return [(radius * math.sin(angle), -radius * math.cos(angle)) for angle in angles]


def circle(rng: Random) -> Outline:
    """A circle."""
    return Outline(ring_of_points(64))


def square(rng: Random) -> Outline:
    """A square that stands on its side."""
    return Outline(ring_of_points(4, turn=0.5))


def triangle(rng: Random) -> Outline:
    """A triangle with three equal sides."""
    return Outline(ring_of_points(3))


def star(rng: Random) -> Outline:
    """A star with five points, slim or fat."""
    inner = ring_of_points(5, rng.uniform(0.38, 0.5), turn=0.5)
    return Outline([point for pair in zip(ring_of_points(5), inner, strict=True) for point in pair])


def cross(rng: Random) -> Outline:
    """An upright cross with four equal arms."""
    half = rng.uniform(0.2, 0.32)
    long = math.sqrt(1 - half * half)
    points = []
    for x, y in ((1, 1), (-1, 1), (-1, -1), (1, -1)):
        corner = [(x * long, y * half), (x * half, y * half), (x * half, y * long)]
        points += corner if x == y else corner[::-1]
    return Outline(points)


def ring(rng: Random) -> Outline:
    """A circle with a round hole in the middle."""
    return Outline(ring_of_points(64), ring_of_points(64, rng.uniform(0.5, 0.7)))


def moon(rng: Random) -> Outline:
    """A crescent: a circle without a smaller one that reaches over its edge."""
    shift = rng.uniform(0.42, 0.55)
    return Outline(
        ring_of_points(64), [(0.85 * x + shift, 0.85 * y) for x, y in ring_of_points(64)]
    )


def heart(rng: Random) -> Outline:
    """A heart with its tip at the bottom."""
    points = []
    for i in range(64):
        angle = math.tau * i / 64
        height = 13 * math.cos(angle) - 5 * math.cos(2 * angle)
        height -= 2 * math.cos(3 * angle) + math.cos(4 * angle)
        points.append((math.sin(angle) ** 3 * 16 / 18.3, -(height + 2.5) / 18.3))
    return Outline(points)


SHAPES: dict[str, Callable[[Random], Outline]] = {
    make.__name__: make for make in (circle, square, triangle, star, cross, ring, moon, heart)
}


def picture_size(rng: Random, max_aspect: float) -> tuple[int, int]:
    """Width and height in pixels; small ones are as frequent as large ones.

    Args:
        max_aspect: of the long side to the short one.
    """
    low, high = map(math.log, SHORT_SIDE)
    short = round(math.exp(rng.uniform(low, high)))
    long = round(short * (1.0 if rng.random() < 0.3 else rng.uniform(1.0, max_aspect)))
    return (short, long) if rng.random() < 0.5 else (long, short)


def shade(rng: Random, colour: str) -> Colour:
    """One of the shades that are called `colour`."""
    shades = COLOURS[colour]
    weights = [rng.expovariate(1.0) for _ in shades]
    red, green, blue = np.average(shades, axis=0, weights=weights)
    return jittered(rng, red), jittered(rng, green), jittered(rng, blue)


def jittered(rng: Random, value: float) -> int:
    """A channel's value, a little changed."""
    return min(255, max(0, round(value + rng.uniform(-JITTER, JITTER))))


def light(rng: Random) -> Colour:
    """White or a very light colour."""
    if rng.random() < 0.5:
        return 255, 255, 255
    return rng.randint(222, 255), rng.randint(222, 255), rng.randint(222, 255)


def background(rng: Random, size: tuple[int, int]) -> Image.Image:
    """A picture all in a light colour, or fading from one to another."""
    if rng.random() < 0.8:
        return Image.new("RGB", size, light(rng))
    fade = Image.linear_gradient("L").rotate(pick(rng, (0, 90, 180, 270))).resize(size)
    one, other = (Image.new("RGB", size, light(rng)) for _ in range(2))
    return Image.composite(one, other, fade)


def placed(points: list[Point], centre: Point, radius: float, angle: float) -> list[Point]:
    """The points of the unit circle turned by `angle`, scaled and moved into a picture."""
    cos, sin = radius * math.cos(angle), radius * math.sin(angle)
    x0, y0 = centre
    return [(x0 + cos * x - sin * y, y0 + sin * x + cos * y) for x, y in points]


def noisy(rng: Random, picture: Image.Image, amplitude: int) -> Image.Image:
    """The picture with every value up to `amplitude` higher or lower."""
    values = np.asarray(picture).astype(np.int16)
    noise = np.random.default_rng(rng.getrandbits(32))
    values += noise.integers(-amplitude, amplitude, values.shape, np.int16, endpoint=True)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))
