from pathlib import Path

from quire.engine.checkpoint.problems import mismatch, shortlist


def test_short_lists_are_whole() -> None:
    assert shortlist(["a", "b"]) == "a, b"
    assert shortlist(str(i) for i in range(8)) == "0, 1, 2, 3, 4, 5, 6, 7"


def test_long_lists_are_shortened_with_a_count() -> None:
    assert shortlist(map(str, range(100))) == "0, 1, 2, 3, 4, 5, 6, 7, and 92 more"


def test_all_problems_are_in_one_error() -> None:
    error = str(mismatch(Path("m"), {"missing": ["a", "b"], "unused": ["c"]}))
    assert "- missing (2): a, b\n- unused (1): c\n" in error
