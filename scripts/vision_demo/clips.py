"""Clips of a thing that moves, and perhaps of another one that stands still, made from a seed."""

import dataclasses
from random import Random

import numpy as np
from PIL import Image

from ..media_demo.words import pick
from .drawings import MAX_ASPECT, SCALES, any_angle, mask
from .shapes import SHAPES, Point, background, noisy, picture_size, shade
from .wordings import Thing, any_thing

DIRECTIONS = ("right", "down", "left", "up")
FRAMES = (3, 6)
"""Least and most frames of a clip."""
RADIUS = (0.26, 0.5)
"""Of the circle around a shape, as a share of half the short side."""
TRAVEL = (0.6, 1.0)
"""How far a thing moves, as a share of how far it could."""


@dataclasses.dataclass(frozen=True)
class Clip:
    """What a clip shows: at least one thing, in the middle square of its frames."""

    moving: Thing | None
    still: Thing | None
    direction: str
    """Where `moving` moves."""


def any_clip(rng: Random) -> Clip:
    """Most often something moves, and every other time something else stands still."""
    first, second = any_thing(rng), any_thing(rng)
    direction, chance = pick(rng, DIRECTIONS), rng.random()
    if chance < 0.1:
        return Clip(None, first, direction)
    while second == first:
        second = any_thing(rng)
    return Clip(first, second if chance < 0.5 else None, direction)


def film(rng: Random, clip: Clip) -> np.ndarray:
    """Its frames, uint8 [T, H, W, 3]."""
    return turned(filmed_rightwards(rng, clip), clip.direction)


def turned(frames: np.ndarray, direction: str) -> np.ndarray:
    """Frames in which a thing moves right, so that it moves in that direction."""
    if direction in ("down", "up"):
        frames = frames.swapaxes(1, 2)
    if direction == "left":
        return frames[:, :, ::-1]
    return frames[:, ::-1] if direction == "up" else frames


def filmed_rightwards(rng: Random, clip: Clip) -> np.ndarray:
    """Frames of the clip, uint8 [T, H, W, 3], but that what moves goes to the right."""
    size = picture_size(rng, MAX_ASPECT)
    half, number = min(size) / 2, rng.randint(*FRAMES)
    ground = background(rng, size)
    middle = size[0] / 2, size[1] / 2
    path, place, (moving, still) = layout(rng, number)
    if clip.still:
        ground = Stamp(rng, clip.still, still * half).on(ground, at(middle, half, place))
    frames = [ground] * number
    if clip.moving:
        stamp = Stamp(rng, clip.moving, moving * half)
        frames = [stamp.on(ground, at(middle, half, point)) for point in path]
    if rng.random() < 0.2:
        frames = [noisy(rng, frame, rng.randint(4, 24)) for frame in frames]
    return np.stack([np.asarray(frame) for frame in frames])


def layout(rng: Random, number: int) -> tuple[list[Point], Point, tuple[float, float]]:
    """Where in the square from -1 to 1 a thing is in each frame, where another one stands that it
    does not touch, and the radii of both."""
    moving = rng.uniform(*RADIUS)
    still = rng.uniform(RADIUS[0], min(RADIUS[1], 0.95 - moving))
    free = 2 - 2 * moving - 2 * still
    above = rng.uniform(0, free)
    side = pick(rng, (-1, 1))
    y = side * (1 - moving - rng.uniform(0, free - above))
    span = 2 - 2 * moving
    travel = span * rng.uniform(*TRAVEL)
    start = moving - 1 + rng.uniform(0, span - travel)
    pace = rng.uniform(0.8, 1.25)
    path = [(start + travel * (i / (number - 1)) ** pace, y) for i in range(number)]
    place = rng.uniform(still - 1, 1 - still), -side * (1 - still - above)
    return path, place, (moving, still)


def at(middle: Point, half: float, point: Point) -> Point:
    """The pixel of a point of the square from -1 to 1 around the middle."""
    return middle[0] + half * point[0], middle[1] + half * point[1]


class Stamp:
    """A thing that looks the same wherever it is."""

    def __init__(self, rng: Random, thing: Thing, radius: float) -> None:
        self.colour, self.outline = shade(rng, thing.colour), SHAPES[thing.shape](rng)
        self.radius, self.angle, self.scale = radius, any_angle(rng), pick(rng, SCALES)

    def on(self, ground: Image.Image, centre: Point) -> Image.Image:
        """A copy of the ground with the thing there."""
        frame = ground.copy()
        where = mask(self.outline, ground.size, centre, self.radius, self.angle, self.scale)
        frame.paste(self.colour, mask=where)
        return frame
