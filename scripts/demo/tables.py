"""Questions about small tables, and the SQL that answers them: what the demo's adapter learns.

Table cars: name, price, age
Which cars have a price over 300?
SQL: SELECT name FROM cars WHERE price > 300;

The split goes by pairs of a table and a column, and by numbers: no question for training asks about
the pair of a held-out one, or has its number. Imports nothing but the standard library.
"""

import dataclasses
from collections.abc import Callable, Sequence
from random import Random

from turns import article, is_held, pick

END = "<|endoftext|>"
"""The token that the model ends an answer with."""

TABLES = ("cars", "boats", "trucks", "bikes", "horses", "dogs", "robots", "rooms", "lamps", "boxes")
TABLES += ("phones", "chairs", "doors", "trains", "goats", "bears")
TITLES = ("name", "model", "number")
"""What the first column may be called, which tells one row from another."""
COLUMNS = ("price", "age", "weight", "height", "speed", "size", "width", "depth", "score")

HAVE = (("over", ">"), ("above", ">"), ("under", "<"), ("below", "<"), ("of", "="))
MEASURES = (("highest", "MAX"), ("lowest", "MIN"), ("average", "AVG"), ("total", "SUM"))
ORDERS = (("highest", " DESC"), ("lowest", ""))
COMPARISONS = {
    "price": ("cost more than", "cost less than"),
    "age": ("are older than", "are younger than"),
    "weight": ("are heavier than", "are lighter than"),
    "height": ("are taller than", "are shorter than"),
    "speed": ("are faster than", "are slower than"),
    "size": ("are bigger than", "are smaller than"),
}
"""Other words for a column over a number, and under one."""


@dataclasses.dataclass(frozen=True)
class Question:
    """A question as the model gets it, and what it should write."""

    prompt: str
    answer: str
    """Begins with a space. `END` is to follow."""


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a question is about."""

    table: str
    title: str
    column: str
    number: int


def condition(rng: Random, facts: Facts) -> tuple[str, str]:
    """A condition on the rows in words, and in SQL."""
    column, number = facts.column, facts.number
    if column in COMPARISONS and rng.random() < 0.4:
        words, sign = pick(rng, tuple(zip(COMPARISONS[column], "><", strict=True)))
        return f"{words} {number}", f"WHERE {column} {sign} {number}"
    words, sign = pick(rng, HAVE)
    return f"have {article(column)} {words} {number}", f"WHERE {column} {sign} {number}"


def rows(rng: Random, facts: Facts) -> tuple[str, str]:
    """Which rows fulfil a condition."""
    words, sql = condition(rng, facts)
    return f"Which {facts.table} {words}?", f"SELECT {facts.title} FROM {facts.table} {sql}"


def number_of(rng: Random, facts: Facts) -> tuple[str, str]:
    """How many rows fulfil one."""
    words, sql = condition(rng, facts)
    return f"How many {facts.table} {words}?", f"SELECT COUNT(*) FROM {facts.table} {sql}"


def measure(rng: Random, facts: Facts) -> tuple[str, str]:
    """A number over all rows."""
    words, function = pick(rng, MEASURES)
    question = f"What is the {words} {facts.column} of all {facts.table}?"
    return question, f"SELECT {function}({facts.column}) FROM {facts.table}"


def top(rng: Random, facts: Facts) -> tuple[str, str]:
    """The first few rows by a column."""
    words, order = pick(rng, ORDERS)
    few = rng.randint(2, 9)
    question = f"Which {few} {facts.table} have the {words} {facts.column}?"
    sql = f"SELECT {facts.title} FROM {facts.table} ORDER BY {facts.column}{order} LIMIT {few}"
    return question, sql


Kind = Callable[[Random, Facts], tuple[str, str]]

KINDS: tuple[Kind, ...] = (rows, number_of, measure, top)


def draw_facts(rng: Random, held: bool) -> Facts:
    """Facts whose pair of table and column, and whose number, are on that side of the split."""
    while is_held(f"{(table := pick(rng, TABLES))} {(column := pick(rng, COLUMNS))}") != held:
        pass
    while is_held(f"number {(number := rng.randint(2, 999))}") != held:
        pass
    return Facts(table, pick(rng, TITLES), column, number)


def question(rng: Random, kinds: Sequence[Kind], held: bool) -> Question:
    """A question of one of the kinds, from the held-out side or from the side for training."""
    facts = draw_facts(rng, held)
    other = pick(rng, [column for column in COLUMNS if column != facts.column])
    columns = rng.sample((facts.column, other), 2)
    words, sql = pick(rng, kinds)(rng, facts)
    header = ", ".join((facts.title, *columns))
    return Question(f"Table {facts.table}: {header}\n{words}\nSQL:", f" {sql};")


def training_questions(seed: int, count: int, kinds: Sequence[Kind] = KINDS) -> list[Question]:
    """Questions to train on, the same for the same seed."""
    rng = Random(seed)
    return [question(rng, kinds, held=False) for _ in range(count)]


def held_out_questions(count: int, seed: int = 0, kinds: Sequence[Kind] = KINDS) -> list[Question]:
    """Different questions that training never has, the same for the same seed."""
    rng = Random(f"held out {seed}")
    questions: set[Question] = set()
    while len(questions) < count:
        questions.add(question(rng, kinds, held=True))
    return sorted(questions, key=lambda one: one.prompt)
