"""Checks on what users pass as parameters. Every failure is an `OptionError` with the remedy."""

import dataclasses
import functools
import math
import numbers
import reprlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, SupportsFloat, SupportsInt, TypeGuard, TypeVar, cast

from ..errors import OptionError, nearest

T = TypeVar("T")


class Unsupported(NamedTuple):
    """A name users know from elsewhere that is refused unless it has no effect."""

    neutral: object
    """The value, besides None, that asks for nothing."""
    remedy: str


def refused(name: str, value: object, allowed: str, remedy: str) -> OptionError:
    """The error for a value: what was given, what is allowed, what to do."""
    kind = type(value).__name__
    given = f"{name}={reprlib.repr(value)} ({kind})"
    return OptionError(f"{given} is not allowed: it must be {allowed}. {remedy}")


class Range(NamedTuple):
    """What a number may be, and what to do about one that is not."""

    remedy: str
    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    """Whether `low` itself is outside."""

    def holds(self, value: float) -> bool:
        """Whether `value` is finite and inside."""
        above = self.low < value if self.open_low else self.low <= value
        return above and value <= self.high and math.isfinite(value)

    def describe(self, kind: str) -> str:
        """Such as `an int, 1 or more` or `a number in (0, 1]`."""
        if math.isfinite(self.high):
            return f"{kind} in {'(' if self.open_low else '['}{self.low}, {self.high}]"
        if math.isfinite(self.low):
            return f"{kind} above {self.low}" if self.open_low else f"{kind}, {self.low} or more"
        return f"a finite {kind.split()[-1]}"


TOKEN_ID = Range("Token ids count from 0; take them from the model's tokenizer.", low=0)


def integer(name: str, value: object, allowed: Range) -> int:
    """`value` as an int of the range; a bool is not an int. Raises `OptionError`."""
    if not _is_integral(value) or not allowed.holds(int(value)):
        raise refused(name, value, allowed.describe("an int"), allowed.remedy)
    return int(value)


def number(name: str, value: object, allowed: Range) -> float:
    """`value` as a float of the range, never NaN or infinite. Raises `OptionError`."""
    if not _is_real(value) or not allowed.holds(float(value)):
        raise refused(name, value, allowed.describe("a number"), allowed.remedy)
    return float(value)


def flag(name: str, value: object) -> bool:
    """`value` if it is True or False. Raises `OptionError`."""
    if not isinstance(value, bool):
        raise refused(name, value, "True or False", "Pass a bool.")
    return value


def token_ids(name: str, value: object) -> list[int]:
    """A new list of token ids, [] for None. Raises `OptionError`."""
    if value is None:
        return []
    if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__iter__"):
        raise refused(name, value, "a list of token ids", "Pass a list of ints, or None.")
    return [integer(name, item, TOKEN_ID) for item in cast("Iterable[object]", value)]


def strings(name: str, value: object) -> list[str]:
    """A new list of non-empty strings, of one string, or [] for None. Raises `OptionError`."""
    if value is None:
        return []
    items = [value] if isinstance(value, str) else value
    remedy = "Pass a string, a list of strings, or None."
    if not isinstance(items, list | tuple):
        raise refused(name, value, "a string or a list of strings", remedy)
    if not all(isinstance(item, str) and item for item in items):
        raise refused(name, value, "strings of at least one character", remedy)
    return list(items)


def strict_options(
    unsupported: Mapping[str, Unsupported],
) -> Callable[[type[T]], type[T]]:
    """Decorates a keyword-only dataclass: a keyword that is unknown, missing, or in `unsupported`
    with an effect is an `OptionError`, and all of them are in one message."""

    def decorate(cls: type[T]) -> type[T]:
        fields = [field for field in dataclasses.fields(cls) if field.init]  # pyright: ignore
        known = frozenset(field.name for field in fields)
        required = [field.name for field in fields if _has_no_default(field)]
        assign = cls.__init__

        @functools.wraps(assign)
        def __init__(self: T, **options: Any) -> None:
            problems = [_missing(name) for name in required if name not in options]
            problems += [
                _unknown(name, value, known, unsupported)
                for name, value in options.items()
                if name not in known
            ]
            if any(problems):
                raise OptionError(f"{cls.__name__}: " + " ".join(filter(None, problems)))
            assign(self, **{name: options[name] for name in options if name in known})

        cls.__init__ = __init__
        return cls

    return decorate


def _is_integral(value: object) -> TypeGuard[SupportsInt]:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_real(value: object) -> TypeGuard[SupportsFloat]:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _has_no_default(field: "dataclasses.Field[Any]") -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _missing(name: str) -> str:
    return f"{name!r} is missing; pass {name}=..."


def _unknown(
    name: str, value: object, known: frozenset[str], unsupported: Mapping[str, Unsupported]
) -> str:
    """What is wrong with a keyword that is no field; empty where it asks for nothing."""
    if name not in unsupported:
        hint = nearest(name, known) or f" Known are {', '.join(sorted(known))}."
        return f"there is no parameter {name!r}.{hint}"
    neutral, remedy = unsupported[name]
    if value is None or (type(value) is type(neutral) and value == neutral):
        return ""
    return f"{name}={value!r} is not supported. {remedy}"
