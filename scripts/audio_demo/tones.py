"""Sounds of a few tones, each high or low, as samples made from a seed."""

import dataclasses
import math
from random import Random

import numpy as np

from ..media_demo.words import pick

RATE = 16000
"""Samples a second."""
SECONDS = 4.9
"""No sound is longer."""
MOST = 5
"""Tones of a sound."""
HERTZ = {"low": (110.0, 550.0), "high": (800.0, 3000.0)}
"""Where the tones of each pitch begin and end."""
PITCHES = tuple(HERTZ)
CLEAR = 1.25
"""One tone is clearly higher than another if its frequency is so many times the other's."""
TONE, PAUSE = (0.1, 0.8), (0.07, 0.5)
"""Seconds of a typical tone and of a typical pause of a sound."""
TIMBRES = (
    (1.0,),
    (1.0,),
    (1.0, 0.0, 0.33, 0.0, 0.2),
    (1.0, 0.5, 0.33, 0.25),
    (1.0, 0.2, 0.0, 0.25),
    (0.6, 0.6, 0.3),
)
"""How loud the multiples of a tone's frequency are: sines, and something like a square wave, a
string, a bell or a reed."""


@dataclasses.dataclass(frozen=True)
class Sound:
    """The frequencies of the tones that are heard, in order."""

    hertz: tuple[float, ...]

    @property
    def number(self) -> int:
        """Of tones."""
        return len(self.hertz)

    @property
    def pitches(self) -> tuple[str, ...]:
        """Of the tones."""
        return tuple("low" if hertz <= HERTZ["low"][1] else "high" for hertz in self.hertz)

    @property
    def top(self) -> float:
        """The frequency of the highest tone, 0 without tones."""
        return max(self.hertz, default=0.0)


def any_sound(rng: Random) -> Sound:
    """Of no tone to MOST of them, now and then all of one pitch."""
    number = pick(rng, range(MOST + 1), (1, 4, 5, 4, 4, 4))
    pitches = (pick(rng, PITCHES),) if rng.random() < 0.2 else PITCHES
    return Sound(tuple(any_hertz(rng, pick(rng, pitches)) for _ in range(number)))


def any_hertz(rng: Random, pitch: str) -> float:
    """A frequency of that pitch; all intervals are as frequent."""
    low, high = HERTZ[pitch]
    return low * (high / low) ** rng.random()


def clearly_apart(one: float, two: float) -> bool:
    """Whether of two frequencies one is clearly higher."""
    return max(one, two) >= CLEAR * min(one, two)


def play(rng: Random, sound: Sound) -> np.ndarray:
    """Float32 [N] in -1..1: the tones with pauses between them, over some noise."""
    parts = [silence(pick(rng, (0.0, rng.uniform(0.0, 0.4))))]
    for hertz, length, gap in zip(sound.hertz, *lengths(rng, sound), strict=True):
        parts += [tone(rng, hertz, length) * rng.uniform(0.5, 1.0), silence(gap)]
    parts.append(silence(pick(rng, (0.05, rng.uniform(0.05, 0.5)))))
    samples = np.concatenate(parts)[: int(SECONDS * RATE)]
    samples = samples * np.float32(10 ** rng.uniform(-1.6, 0.0))
    if rng.random() < 0.75:
        samples += noise(rng, len(samples)) * np.float32(10 ** rng.uniform(-4.5, -2.3))
    return samples.clip(-1, 1)


def lengths(rng: Random, sound: Sound) -> tuple[list[float], list[float]]:
    """Seconds of each tone, and of the pause behind it; they are scaled to fit in a sound.

    Now and then the tones of a melody follow each other without a pause.
    """
    steps = zip(sound.hertz, sound.hertz[1:], strict=False)
    joined = rng.random() < 0.12 and all(clearly_apart(*step) for step in steps)
    tones, pauses = around(rng, TONE, sound.number), around(rng, PAUSE, sound.number)
    if joined:
        pauses = [0.0] * sound.number
    scale = min(1.0, (SECONDS - 1.0) / max(sum(tones) + sum(pauses), 1e-3))
    return [scale * each for each in tones], [
        max(scale * each, 0.06 * (not joined)) for each in pauses
    ]


def around(rng: Random, limits: tuple[float, float], number: int) -> list[float]:
    """So many lengths around a random one within the limits, or exactly it."""
    middle = math.exp(rng.uniform(*map(math.log, limits)))
    spread = pick(rng, (0.0, 0.3))
    return [middle * rng.uniform(1 - spread, 1 + spread) for _ in range(number)]


def silence(seconds: float) -> np.ndarray:
    """Float32 zeros of that many seconds."""
    return np.zeros(int(seconds * RATE), np.float32)


def noise(rng: Random, count: int) -> np.ndarray:
    """Float32 [count]: white noise, or rather of low frequencies."""
    white = np.random.default_rng(rng.getrandbits(64)).standard_normal(count, np.float32)
    if rng.random() < 0.6:
        return white
    width = pick(rng, (2, 4, 8))
    return np.convolve(white, np.full(width, width**-0.5, np.float32), "same")


def tone(rng: Random, hertz: float, seconds: float) -> np.ndarray:
    """One tone, with a soft or a hard beginning and end, that may glide a little or fade."""
    time = np.arange(int(seconds * RATE), dtype=np.float32) / RATE
    glide = rng.uniform(-0.06, 0.06) if rng.random() < 0.3 else 0.0
    phase = 2 * np.pi * hertz * time * (1 + glide * time / (2 * seconds))
    timbre = pick(rng, TIMBRES)
    wave = np.zeros_like(time)
    for multiple, weight in enumerate(timbre, 1):
        if weight and multiple * hertz < 0.45 * RATE:
            wave += weight * np.sin(multiple * phase + rng.uniform(0, math.tau))
    edge = pick(rng, (0.001, rng.uniform(0.003, 0.03)))
    wave *= np.minimum(1.0, np.minimum(time, seconds - time) / edge).clip(0)
    if rng.random() < 0.25:
        wave *= np.exp(-time * rng.uniform(0.5, 2.0) / seconds)
    return (wave / sum(timbre)).astype(np.float32)
