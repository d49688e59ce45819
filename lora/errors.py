"""The error of an adapter that cannot be used, and how its text lists what is wrong."""

from collections.abc import Mapping, Sequence

from ..errors import QuireError

_LONGEST_LIST = 8


class AdapterError(QuireError, ValueError):
    """An adapter is missing, of a kind that is not supported, or does not fit the model."""


def refused(what: str, problems: Mapping[str, Sequence[str]], remedy: str) -> AdapterError:
    """One error for everything that is wrong with an adapter.

    Args:
        what: how the text begins, such as `The adapter 'sql' does not fit the model`.
        problems: kind of problem, to one line for each case of it.
        remedy: how the text ends.
    """
    lines = [f"- {kind} ({len(cases)}): {_shortlist(cases)}" for kind, cases in problems.items()]
    return AdapterError("\n".join([f"{what}:", *lines, remedy]))


def _shortlist(cases: Sequence[str]) -> str:
    more = len(cases) - _LONGEST_LIST
    shown = "; ".join(cases[:_LONGEST_LIST])
    return f"{shown}; and {more} more" if more > 0 else shown
