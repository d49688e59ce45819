"""The shapes that the vision demo draws, and what their colours are called."""

import importlib
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
shapes = importlib.import_module("scripts.vision_demo.shapes")


def nearest_colour(pixel: np.ndarray) -> str:
    """The colour one of whose shades is the nearest to a pixel."""
    distances = {
        name: min(float(np.abs(pixel - np.array(shade)).sum()) for shade in shades)
        for name, shades in shapes.COLOURS.items()
    }
    return min(distances, key=lambda name: distances[name])
