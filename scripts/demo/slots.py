"""The parameters that the functions of the demo model's tool calls may have."""

import dataclasses
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from facts import COLOUR_NAMES, DAYS
from talk import CITIES, person
from turns import pick

LANGUAGES = ("French", "German", "Spanish", "Italian", "Polish", "Dutch", "Greek", "Turkish")
THEMES = ("jazz", "volcanoes", "planets", "dogs", "history", "cooking", "football", "trains")
THEMES += ("rivers", "gardens", "robots", "birds", "castles", "chess", "music", "mountains")
WORDS = ("see you soon", "on my way", "call me back", "happy birthday", "be there at noon")
WORDS += ("thank you", "good luck", "dinner is ready", "do not forget the milk", "I will be late")
WORDS += ("the door is open", "we need more time", "please reply", "well done", "have a nice trip")
TITLES = (
    "weekly plan",
    "shopping list",
    "my trip",
    "new ideas",
    "team notes",
    "blue sky",
    "budget",
)
TITLES += ("garden work", "old photos", "first draft", "summer party", "reading list", "to do")
GENERIC = ("level", "volume", "weight", "height", "width", "depth", "speed", "score", "distance")
GENERIC += ("amount", "year", "age", "points", "floor", "lane", "channel", "version", "radius")


@dataclasses.dataclass(frozen=True)
class Slot:
    """A parameter: how it may be called, how a user words it, and its values."""

    names: Sequence[str]
    phrases: Sequence[str]
    """Parts of a request; `{}` is the value and `{name}` the parameter's own name."""
    value: Callable[[Random], Any]
    description: str
    kind: str = "string"
    options: Sequence[str] = ()


def words(items: Sequence[str]) -> Callable[[Random], str]:
    """Values from a list."""
    return lambda rng: pick(rng, items)


def numbers(low: int, high: int) -> Callable[[Random], int]:
    """Whole values from `low` to `high`."""
    return lambda rng: rng.randint(low, high)


def clock(rng: Random) -> str:
    """A time of day."""
    return f"{rng.randrange(24)}:{rng.randrange(0, 60, 5):02}"


def address(rng: Random) -> str:
    """An e-mail address."""
    return f"{person(rng).lower()}@example.{pick(rng, ('com', 'org'))}"


SIZES = ("small", "medium", "large")
PRIORITIES = ("low", "normal", "high")
FORMATS = ("pdf", "csv", "text")
PARTS = ("morning", "afternoon", "evening")

SLOTS: Sequence[Slot] = (
    Slot(("city", "place", "town"), (" in {}", " near {}"), words(CITIES), "Name of the city"),
    Slot(("day", "date", "weekday"), (" on {}", " for {}"), words(DAYS), "Day of the week"),
    Slot(
        ("people", "guests"),
        (" for {} people", " for {} guests"),
        numbers(2, 20),
        "How many people",
        "integer",
    ),
    Slot(("nights",), (" for {} nights",), numbers(2, 14), "How many nights", "integer"),
    Slot(
        ("minutes", "duration"),
        (" for {} minutes", " of {} minutes"),
        numbers(2, 90),
        "Length in minutes",
        "integer",
    ),
    Slot(
        ("color", "colour"), (" in {}", " coloured {}"), words(COLOUR_NAMES), "Name of the colour"
    ),
    Slot(("size",), (" in size {}", " of {} size"), words(SIZES), "Size", options=SIZES),
    Slot(("language",), (" in {}", " into {}"), words(LANGUAGES), "Name of the language"),
    Slot(
        ("person", "name", "contact", "recipient"),
        (" for {}", " to {}", " with {}"),
        person,
        "Name of the person",
    ),
    Slot(
        ("text", "message", "content"),
        (' saying "{}"', ' with the text "{}"'),
        words(WORDS),
        "What it says",
    ),
    Slot(("title", "label"), (' called "{}"', ' titled "{}"'), words(TITLES), "Title"),
    Slot(("topic", "query", "subject"), (" about {}",), words(THEMES), "What it is about"),
    Slot(("priority",), (" with {} priority",), words(PRIORITIES), "Priority", options=PRIORITIES),
    Slot(("time", "start_time"), (" at {}",), clock, "Time of day"),
    Slot(
        ("max_price", "budget"),
        (" for under {} dollars", " below {} dollars"),
        numbers(10, 990),
        "Highest price",
        "integer",
    ),
    Slot(
        ("id", "number", "code"),
        (" number {}", " with number {}"),
        numbers(100, 9999),
        "Number",
        "integer",
    ),
    Slot(("format", "file_type"), (" as {}",), words(FORMATS), "File format", options=FORMATS),
    Slot(
        ("temperature",),
        (" to {} degrees", " at {} degrees"),
        numbers(10, 30),
        "Degrees",
        "integer",
    ),
    Slot(("email", "address"), (" to {}", " for {}"), address, "E-mail address"),
    Slot(("time_of_day",), (" in the {}",), words(PARTS), "Part of the day", options=PARTS),
    *(
        Slot(
            (name,),
            (" with {name} {}", " and {name} {}"),
            numbers(1, 500),
            f"The {name}",
            "integer",
        )
        for name in GENERIC
    ),
)
