"""Shapes and colours of drawings."""

from random import Random

import numpy as np
import pytest
from tests.scripts.drawn import nearest_colour, shapes


@pytest.mark.parametrize("shape", shapes.SHAPES)
def test_outlines_fill_the_unit_circle_and_keep_within(shape: str) -> None:
    for seed in range(20):
        points = shapes.SHAPES[shape](Random(seed)).points
        radii = np.hypot(*np.array(points).T)
        assert 0.9 < radii.max() <= 1 + 1e-9


@pytest.mark.parametrize("colour", shapes.COLOURS)
def test_shades_are_nearest_to_their_own_colour(colour: str) -> None:
    rng = Random(colour)
    shades = [shapes.shade(rng, colour) for _ in range(200)]
    assert len(set(shades)) > 100
    assert {nearest_colour(np.array(shade)) for shade in shades} == {colour}
