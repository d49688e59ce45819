"""Positions along three axes by hand and by `transformers`, and what rotates by which."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from tests.models.qwen2_vl_model import PROMPTS, load_prompt

from quire.errors import ModelConfigError
from quire.models import mrope
from quire.models.rope import RopeConfig

ROPE = RopeConfig(tuple(0.7**i for i in range(8)), 1.25)


def test_text_stands_where_it_is() -> None:
    positions, delta = mrope.positions(5, [])
    assert positions.tolist() == [[0, 1, 2, 3, 4]] * 3
    assert positions.dtype == np.int32
    assert delta == 0


def test_a_picture_takes_rows_and_columns() -> None:
    positions, delta = mrope.positions(10, [(2, (1, 2, 3))])
    time, height, width = positions.tolist()
    assert time == [0, 1, 2, 2, 2, 2, 2, 2, 5, 6]
    assert height == [0, 1, 2, 2, 2, 3, 3, 3, 5, 6]
    assert width == [0, 1, 2, 3, 4, 2, 3, 4, 5, 6]
    assert delta == -3


def test_text_after_a_video_goes_on_after_its_last_frame() -> None:
    """Where it has more frames than rows and columns. `transformers` 5 goes on after the rows and
    columns here, among the positions of the frames; the paper and earlier versions as here.
    """
    positions, delta = mrope.positions(11, [(1, (4, 1, 2))])
    time, height, width = positions.tolist()
    assert time == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 6]
    assert height == [0, 1, 1, 1, 1, 1, 1, 1, 1, 5, 6]
    assert width == [0, 1, 2, 1, 2, 1, 2, 1, 2, 5, 6]
    assert delta == -4


def test_pictures_side_by_side_and_at_the_ends() -> None:
    positions, delta = mrope.positions(6, [(0, (1, 1, 2)), (2, (1, 2, 2))])
    time, height, width = positions.tolist()
    assert time == [0, 0, 2, 2, 2, 2]
    assert height == [0, 0, 2, 2, 3, 3]
    assert width == [0, 1, 2, 3, 2, 3]
    assert delta == 4 - 6


@pytest.mark.parametrize("name", PROMPTS)
def test_positions_agree(name: str) -> None:
    prompt = load_prompt(name)
    positions, delta = mrope.positions(len(prompt.tokens), prompt.layout)
    assert np.array_equal(positions, prompt.positions)
    assert delta == prompt.delta


@pytest.mark.parametrize("start", [1, 5])
def test_pictures_must_fit(start: int) -> None:
    with pytest.raises(ValueError, match=rf"4 tokens begins at token {start}.*token 2 or.*token 8"):
        mrope.positions(8, [(0, (1, 1, 2)), (start, (1, 2, 2))])


def test_equal_positions_are_plain_rope() -> None:
    positions = jnp.asarray([0, 3, 7, 400, 32767], jnp.int32)
    ours = mrope.cos_sin(ROPE, (2, 3, 3), jnp.stack([positions] * 3))
    for array, plain in zip(ours, ROPE.cos_sin(positions), strict=True):
        assert np.array_equal(array, plain)


def test_each_section_rotates_by_its_own_axis() -> None:
    positions = np.arange(12, dtype=np.int32).reshape(3, 4) ** 2
    ours = mrope.cos_sin(ROPE, (1, 4, 3), jnp.asarray(positions))
    plain = [ROPE.cos_sin(jnp.asarray(axis)) for axis in positions]
    for which in range(2):
        time, height, width = (axis[which] for axis in plain)
        parts = [time[:, :1], height[:, 1:5], width[:, 5:]]
        assert np.array_equal(ours[which], np.concatenate(parts, 1))


def test_sections_of_128_are_the_default() -> None:
    rope = RopeConfig.from_hf({"max_position_embeddings": 8}, 128, 8)
    assert mrope.sections({}, rope) == (16, 24, 24)


@pytest.mark.parametrize("value", [None, 8, [8], [4, 4], [2, 3, 4], [2.0, 3, 3], [-1, 4, 5]])
def test_sections_must_be_half_of_a_head(value: Any) -> None:
    with pytest.raises(ModelConfigError, match=r"'mrope_section'.*three integers.*sum is 8"):
        mrope.sections({"mrope_section": value}, ROPE)
