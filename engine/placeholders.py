"""Placeholder tokens of prompts: one for each feature of a medium."""

import re
from collections.abc import Callable, Mapping, Sequence

from ..errors import PromptError
from ..multimodal.names import NOUNS

Places = list[tuple[int, int]]
"""For each placeholder in the prompt: the index of its first token, and which medium it is."""


def expand(
    token_ids: Sequence[int], media: Sequence[tuple[str, int]], tokens: Mapping[str, int]
) -> tuple[list[int], Places]:
    """The prompt with as many placeholders as its media have features, where it has, of each kind,
    one for each medium or all already.

    Args:
        media: kind and number of features of each; those of a kind are in the prompt's order.
        tokens: the placeholder of each kind.

    Raises:
        PromptError: the prompt has another number of placeholders.
    """
    marks = sorted(
        mark for kind, token in tokens.items() for mark in _marks(kind, token, token_ids, media)
    )
    ids: list[int] = []
    places: Places = []
    behind = 0
    for index, taken, medium in marks:
        ids += token_ids[behind:index]
        places.append((len(ids), medium))
        ids += [token_ids[index]] * media[medium][1]
        behind = index + taken
    return ids + list(token_ids[behind:]), places


def _marks(
    kind: str, token: int, token_ids: Sequence[int], media: Sequence[tuple[str, int]]
) -> list[tuple[int, int, int]]:
    """Where the placeholders of a kind's media begin, how many there are, and of which medium."""
    found = [index for index, other in enumerate(token_ids) if other == token]
    numbers = [number for number, (other, _) in enumerate(media) if other == kind]
    counts = [media[number][1] for number in numbers]
    if len(found) == sum(counts):
        starts = _starts(kind, found, counts)
        return list(zip(starts, counts, numbers, strict=True))
    if len(found) != len(counts):
        raise PromptError(
            f"the prompt has {len(found)} {kind} placeholders (token {token}) for {len(counts)} "
            f"{NOUNS[kind]}: it must have one for each, or one for each feature, {sum(counts)} in "
            "all."
        )
    return [(index, 1, number) for index, number in zip(found, numbers, strict=True)]


def _starts(kind: str, found: Sequence[int], counts: Sequence[int]) -> list[int]:
    """The first placeholder of each medium, whose placeholders must follow one another."""
    starts: list[int] = []
    first = 0
    for number, count in enumerate(counts):
        if found[first + count - 1] - found[first] != count - 1:
            raise PromptError(
                f"{kind} {number} has {count} features, but its placeholders do not follow one "
                "another in the prompt: put as many side by side, or one alone."
            )
        starts.append(found[first])
        first += count
    return starts


def encode_marked(
    text: str, markers: Mapping[str, int], encode: Callable[[str, bool], Sequence[int]]
) -> list[int]:
    """The tokens of a text with one in the place of each marker, which is cut out of the text.

    Args:
        markers: the token of each.
        encode: token ids of a piece of text, and whether it is the first.
    """
    cuts = "|".join(map(re.escape, markers))
    first, *others = re.split(f"({cuts})", text) if markers else [text]
    ids = list(encode(first, True))
    for marker, piece in zip(others[::2], others[1::2], strict=True):
        ids.append(markers[marker])
        ids += encode(piece, False) if piece else []
    return ids


def expand_numbered(
    text: str,
    marker: str,
    image_token: int,
    counts: Sequence[int],
    encode: Callable[[str, bool], Sequence[int]],
) -> tuple[list[int], Places]:
    """The tokens of a text whose markers, such as `<|image_1|>`, name pictures by number.

    Args:
        marker: with `{}` for the number, which counts from 1.
        encode: token ids of a piece of text, and whether it is the first.

    Raises:
        PromptError: a number is missing, stands twice or is that of no picture.
    """
    before, after = map(re.escape, marker.split("{}"))
    pieces = re.split(rf"{before}(\d+){after}", text)
    numbers = [int(number) for number in pieces[1::2]]
    if sorted(numbers) != list(range(1, len(counts) + 1)):
        shown = ", ".join(map(marker.format, numbers)) or "none"
        raise PromptError(
            f"the prompt has {len(numbers)} image placeholders ({shown}) for {len(counts)} "
            f"pictures: it must have each of {marker.format(1)} to {marker.format('n')} once."
        )
    ids = list(encode(pieces[0], True))
    places: Places = []
    for number, piece in zip(numbers, pieces[2::2], strict=True):
        places.append((len(ids), number - 1))
        ids += [image_token] * counts[number - 1]
        ids += encode(piece, False) if piece else []
    return ids, places
