"""Pictures of one shape in one colour, at random places, sizes and turns, made from a seed."""

import math
from random import Random

from PIL import Image, ImageDraw

from ..media_demo.words import pick
from .shapes import (
    SHAPES,
    Outline,
    Point,
    background,
    noisy,
    picture_size,
    placed,
    shade,
)

MAX_ASPECT = 1.8
RADIUS = (0.4, 0.94)
"""Of the circle around a shape, as a share of half the short side."""
SCALES = (1, 2)
"""How many times larger a shape is drawn than it is seen: by 2 its edges are smooth."""


def draw(rng: Random, shape: str, colour: str) -> Image.Image:
    """An RGB picture of one `shape` in `colour`, all of which is in it."""
    size = picture_size(rng, MAX_ASPECT)
    picture = background(rng, size)
    radius = min(size) / 2 * rng.uniform(*RADIUS)
    x, y = (rng.uniform(radius + 1, side - radius - 1) for side in size)
    outline, angle, scale = SHAPES[shape](rng), any_angle(rng), pick(rng, SCALES)
    picture.paste(shade(rng, colour), mask=mask(outline, size, (x, y), radius, angle, scale))
    return noisy(rng, picture, rng.randint(4, 24)) if rng.random() < 0.2 else picture


def any_angle(rng: Random) -> float:
    """In radians, often 0."""
    return 0.0 if rng.random() < 0.4 else rng.uniform(0, math.tau)


def mask(
    outline: Outline,
    size: tuple[int, int],
    centre: Point,
    radius: float,
    angle: float,
    scale: int,
) -> Image.Image:
    """Where the shape is in a picture of `size`: 255 in it and 0 around it; see `SCALES`."""
    image = Image.new("L", (scale * size[0], scale * size[1]))
    pen = ImageDraw.Draw(image)
    place = (scale * centre[0], scale * centre[1]), scale * radius, angle
    pen.polygon(placed(outline.points, *place), fill=255)
    if outline.hole:
        pen.polygon(placed(outline.hole, *place), fill=0)
    return image.reduce(scale)
