"""Placeholder tokens of prompts: one for each feature of a picture."""

import re
from collections.abc import Callable, Sequence

from ..errors import PromptError

Places = list[tuple[int, int]]
"""For each placeholder in the prompt: the index of its first token, and which picture it is."""


def expand(
    token_ids: Sequence[int], image_token: int, counts: Sequence[int]
) -> tuple[list[int], Places]:
    """The prompt with `counts[i]` tokens for picture i, where it has one for each or all already.

    Raises PromptError where it has another number of placeholders.
    """
    found = [index for index, token in enumerate(token_ids) if token == image_token]
    if len(found) == sum(counts):
        return list(token_ids), _runs(found, counts)
    if len(found) != len(counts):
        raise PromptError(
            f"the prompt has {len(found)} image placeholders (token {image_token}) for "
            f"{len(counts)} pictures: it must have one for each, or one for each feature, "
            f"{sum(counts)} in all."
        )
    ids: list[int] = []
    places: Places = []
    behind = 0
    for picture, (index, count) in enumerate(zip(found, counts, strict=True)):
        ids += token_ids[behind:index]
        places.append((len(ids), picture))
        ids += [image_token] * count
        behind = index + 1
    return ids + list(token_ids[behind:]), places


def _runs(found: Sequence[int], counts: Sequence[int]) -> Places:
    """Where the tokens of each picture begin, which must follow one another."""
    places: Places = []
    first = 0
    for picture, count in enumerate(counts):
        if found[first + count - 1] - found[first] != count - 1:
            raise PromptError(
                f"picture {picture} has {count} features, but its placeholders do not follow one "
                "another in the prompt: put as many side by side, or one alone."
            )
        places.append((found[first], picture))
        first += count
    return places


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
