"""Pictures of one shape in one colour, at random places, sizes and turns, made from a seed."""

import math
from random import Random

from PIL import Image, ImageDraw

from ..media_demo.words import pick
from .shapes import SHAPES, Outline, background, noisy, picture_size, placed, shade

MAX_ASPECT = 2.0
RADIUS = (0.36, 0.94)
"""Of the circle around a shape, as a share of half the short side."""


def draw(rng: Random, shape: str, colour: str) -> Image.Image:
    """An RGB picture of one `shape` in `colour`; what a crop to a square keeps has all of it."""
    size = picture_size(rng, MAX_ASPECT)
    picture = background(rng, size)
    picture.paste(shade(rng, colour), mask=mask(rng, SHAPES[shape](rng), size))
    return noisy(rng, picture, rng.randint(4, 24)) if rng.random() < 0.2 else picture


def mask(rng: Random, outline: Outline, size: tuple[int, int]) -> Image.Image:
    """Where the shape is: 255 in it and 0 around it. Every other one has smooth edges."""
    scale = pick(rng, (1, 2))
    width, height = (scale * side for side in size)
    half = min(width, height) / 2
    radius = half * rng.uniform(*RADIUS)
    centre = (
        width / 2 + rng.uniform(-1, 1) * (half - radius - scale),
        height / 2 + rng.uniform(-1, 1) * (half - radius - scale),
    )
    angle = 0.0 if rng.random() < 0.4 else rng.uniform(0, math.tau)
    image = Image.new("L", (width, height))
    pen = ImageDraw.Draw(image)
    pen.polygon(placed(outline.points, centre, radius, angle), fill=255)
    if outline.hole:
        pen.polygon(placed(outline.hole, centre, radius, angle), fill=0)
    return image.reduce(scale)
