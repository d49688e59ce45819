"""Markers and placeholder tokens of prompts. Tests of engines have the others."""

import pytest

from quire.engine.placeholders import encode_marked

MARKERS = {"<|audio|>": 7, "<v>": 8}


def letters(text: str, first: bool) -> list[int]:
    """A token of each letter, and 0 in front of the first piece."""
    return [0] * first + [ord(letter) for letter in text]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("", [0]),
        ("a", [0, 97]),
        ("<|audio|>", [0, 7]),
        ("<v>a<|audio|><|audio|>b<v>", [0, 8, 97, 7, 7, 98, 8]),
        ("<|audio|", [0, *map(ord, "<|audio|")]),
    ],
)
def test_markers_are_cut_out_of_text(text: str, ids: list[int]) -> None:
    assert encode_marked(text, MARKERS, letters) == ids


def test_text_without_markers_is_one_piece() -> None:
    assert encode_marked("<v>a", {}, letters) == letters("<v>a", True)
