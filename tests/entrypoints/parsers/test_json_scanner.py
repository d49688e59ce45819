import json

import pytest
from hypothesis import given, settings, strategies as st

from quire.entrypoints.parsers.json_scanner import JsonScanner

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


def read(text: str) -> tuple[str, bool, bool]:
    """What a scanner takes of `text`, and whether it is then done or broken."""
    scanner = JsonScanner()
    taken, end = scanner.read(text, 0)
    assert len(taken) == end
    return taken, scanner.done, scanner.broken


@settings(max_examples=50, deadline=None)
@given(VALUES, st.sampled_from([None, 2]), st.booleans(), st.floats(0, 1, exclude_max=True))
def test_a_value_ends_where_json_says(
    value: object, indent: int | None, ascii_only: bool, part: float
) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert read(text + ",]} more") == (text, True, False)
    begun = text[: int(part * len(text))]
    assert read(begun) == (begun, False, False)


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("x", ""),
        ("{a", "{"),
        ('{"a" 1', '{"a" '),
        ('{"a": 1,}', '{"a": 1,'),
        ("[1,]", "[1,"),
        ("[1 2]", "[1 "),
        ("[}", "["),
        ('{"a": 1]', '{"a": 1'),
        ("[01]", "[0"),
        ("[-]", "[-"),
        ("[1.]", "[1."),
        ("[1e]", "[1e"),
        ("[tru]", "[tru"),
        ("[True]", "["),
        ("[nan]", "[n"),
        (r'["\x"]', '["\\'),
        (r'["\u12g4"]', r'["\u12'),
    ],
)
def test_what_is_not_json_stops_it(text: str, taken: str) -> None:
    assert read(text) == (taken, False, True)


def test_raw_control_characters_in_strings_become_escapes() -> None:
    text = '{\n"a\tb": "x\ny\x01"}'
    taken, end = JsonScanner().read(text, 0)
    assert (taken, end) == ('{\n"a\\tb": "x\\ny\\u0001"}', len(text))
    assert json.loads(taken) == {"a\tb": "x\ny\x01"}
