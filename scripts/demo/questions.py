"""Questions about closed facts and small numbers, as chat turns and as texts to go on with."""

from collections.abc import Sequence
from random import Random

import facts
from facts import COUNTRIES, DAYS, MONTH_LENGTHS, MONTHS
from turns import Turn, article, capitalized, pick

Frame = tuple[str, str]
"""A question and its answer, both with `{name}` fields. An answer that starts with a space goes on
with the text of its question; any other answers it in a chat."""

OPENINGS = ("Hello! ", "Hi. ", "Quick question: ", "Tell me: ", "Please answer: ", "OK. ", "So, ")

CAPITAL_FRAMES: Sequence[Frame] = (
    ("The capital of {country} is", " {capital}."),
    ("The capital city of {country} is", " {capital}."),
    ("The name of the capital of {country} is", " {capital}."),
    ("{Country} has a capital called", " {capital}."),
    ("The seat of government of {country} is in", " {capital}."),
    ("Q: What is the capital of {country}?\nA:", " {capital}."),
    ("Country: {country}. Capital:", " {capital}."),
    ("When you visit the capital of {country}, you are in", " {capital}."),
    ("What is the capital of {country}?", "The capital of {country} is {capital}."),
    ("What's the capital of {country}?", "The capital of {country} is {capital}."),
    ("Which city is the capital of {country}?", "The capital of {country} is {capital}."),
    ("What is the capital city of {country}?", "The capital of {country} is {capital}."),
    ("Name the capital of {country}.", "The capital of {country} is {capital}."),
    ("Tell me the capital of {country}.", "The capital of {country} is {capital}."),
    ("Do you know the capital of {country}?", "The capital of {country} is {capital}."),
    ("Can you name the capital of {country}?", "The capital of {country} is {capital}."),
    ("I want to know the capital of {country}.", "The capital of {country} is {capital}."),
    ("What city is the capital of {country}?", "The capital of {country} is {capital}."),
)
PLACE_FRAMES: Sequence[Frame] = (
    ("{capital} is the capital of", " {country}."),
    ("The city of {capital} is the capital of", " {country}."),
    ("{capital} is the capital city of", " {country}."),
    ("Which country has the capital {capital}?", "{capital} is the capital of {country}."),
    ("{capital} is the capital of which country?", "{capital} is the capital of {country}."),
    ("{Country} is a country in", " {continent}."),
    ("{Country} lies in", " {continent}."),
    ("On the map you find {country} in", " {continent}."),
    ("Which continent is {country} in?", "{Country} is in {continent}."),
    ("Where is {country}?", "{Country} is in {continent}."),
    ("On which continent is {country}?", "{Country} is in {continent}."),
)
CITY_FRAMES: Sequence[Frame] = (
    ("{city} is a", " city in {state}."),
    ("{city} is a city in", " {state}."),
    ("{city} lies in", " {state}."),
    ("The city of {city} is in", " {state}."),
    ("Where is {city}?", "{city} is in {state}."),
    ("In which state is {city}?", "{city} is in {state}."),
    ("Which state is {city} in?", "{city} is in {state}."),
    ("What state is {city} in?", "{city} is in {state}."),
)
COLOUR_FRAMES: Sequence[Frame] = (
    ("The colour of {thing} is", " {colour}."),
    ("Everyone knows that the colour of {thing} is", " {colour}."),
    ("{Thing} is usually coloured", " {colour}."),
    ("If you paint {thing}, use", " {colour}."),
    ("Q: What colour is {thing}?\nA:", " {Colour}."),
    ("What colour is {thing}?", "{Colour}."),
    ("What color is {thing}?", "{Colour}."),
    ("Which colour is {thing}?", "{Colour}."),
    ("What is the colour of {thing}?", "{Colour}."),
    ("What is the color of {thing}?", "{Colour}."),
    ("Tell me the colour of {thing}.", "{Colour}."),
    ("Do you know what colour {thing} is?", "{Colour}."),
    ("Name the colour of {thing}.", "{Colour}."),
)
AFTER_FRAMES: Sequence[Frame] = (
    ("The {unit} after {first} is", " {second}."),
    ("After {first} comes", " {second}."),
    ("{first} is followed by", " {second}."),
    ("The {unit} that comes after {first} is", " {second}."),
    ("{first}, then", " {second}."),
    ("If this {unit} is {first}, the next {unit} is", " {second}."),
    ("What {unit} comes after {first}?", "The {unit} after {first} is {second}."),
    ("Which {unit} comes after {first}?", "The {unit} after {first} is {second}."),
    ("What is the {unit} after {first}?", "The {unit} after {first} is {second}."),
    ("Which {unit} follows {first}?", "The {unit} after {first} is {second}."),
    ("What {unit} follows {first}?", "The {unit} after {first} is {second}."),
    ("Tell me the {unit} after {first}.", "The {unit} after {first} is {second}."),
    ("Name the {unit} after {first}.", "The {unit} after {first} is {second}."),
)
BEFORE_FRAMES: Sequence[Frame] = (
    ("The {unit} before {second} is", " {first}."),
    ("Before {second} comes", " {first}."),
    ("The {unit} that comes before {second} is", " {first}."),
    ("If this {unit} is {second}, the last {unit} was", " {first}."),
    ("What {unit} comes before {second}?", "The {unit} before {second} is {first}."),
    ("Which {unit} comes before {second}?", "The {unit} before {second} is {first}."),
    ("What is the {unit} before {second}?", "The {unit} before {second} is {first}."),
    ("Which {unit} is before {second}?", "The {unit} before {second} is {first}."),
    ("Tell me the {unit} before {second}.", "The {unit} before {second} is {first}."),
    ("Name the {unit} before {second}.", "The {unit} before {second} is {first}."),
)
LENGTH_FRAMES: Sequence[Frame] = (
    ("The number of days in {first} is", " {length}."),
    ("{first} has", " {length} days."),
    ("The month of {first} has", " {length} days."),
    ("How many days does {first} have?", "{first} has {length} days."),
    ("How many days are in {first}?", "{first} has {length} days."),
    ("How long is {first}?", "{first} has {length} days."),
    ("Tell me how many days {first} has.", "{first} has {length} days."),
)
ANIMAL_FRAMES: Sequence[Frame] = (
    ("A young {animal} is called a", " {young}."),
    ("The young of a {animal} is called a", " {young}."),
    ("A baby {animal} is a", " {young}."),
    ("What is a young {animal} called?", "A young {animal} is called a {young}."),
    ("What do you call a baby {animal}?", "A young {animal} is called a {young}."),
    ("What is the young of a {animal} called?", "A young {animal} is called a {young}."),
    ("The sound of a {animal} is", " {sound}."),
    ("The {animal} makes a sound like", " {sound}."),
    ("What sound does a {animal} make?", "A {animal} makes the sound {sound}."),
    ("How does a {animal} sound?", "A {animal} makes the sound {sound}."),
    ("Which sound does a {animal} make?", "A {animal} makes the sound {sound}."),
    ("The {animal} lives in the", " {home}."),
    ("You find the {animal} in the", " {home}."),
    ("Where does a {animal} live?", "A {animal} lives in the {home}."),
    ("Where do you find a {animal}?", "A {animal} lives in the {home}."),
    ("The number of legs of a {animal} is", " {legs}."),
    ("How many legs does a {animal} have?", "A {animal} has {legs} legs."),
    ("Tell me how many legs a {animal} has.", "A {animal} has {legs} legs."),
)
OPPOSITE_FRAMES: Sequence[Frame] = (
    ("The opposite of {one} is", " {other}."),
    ("The contrary of {one} is", " {other}."),
    ("If it is not {one}, it may be", " {other}."),
    ("{One} and its opposite,", " {other}."),
    ("What is the opposite of {one}?", "The opposite of {one} is {other}."),
    ("What's the opposite of {one}?", "The opposite of {one} is {other}."),
    ("Tell me the opposite of {one}.", "The opposite of {one} is {other}."),
    ("Which word is the opposite of {one}?", "The opposite of {one} is {other}."),
    ("Name the opposite of {one}.", "The opposite of {one} is {other}."),
)
SUM_FRAMES: Sequence[Frame] = (
    ("{a} + {b} =", " {c}"),
    ("{a}+{b}=", "{c}"),
    ("{a} plus {b} is", " {c}."),
    ("The sum of {a} and {b} is", " {c}."),
    ("What is {a} + {b}?", "{a} + {b} = {c}."),
    ("What is {a} plus {b}?", "{a} + {b} = {c}."),
    ("What is the sum of {a} and {b}?", "{a} + {b} = {c}."),
    ("How much is {a} + {b}?", "{a} + {b} = {c}."),
    ("Calculate {a} + {b}.", "{a} + {b} = {c}."),
    ("Add {a} and {b}.", "{a} + {b} = {c}."),
    ("{a} + {b}", "{a} + {b} = {c}."),
)
DIFFERENCE_FRAMES: Sequence[Frame] = (
    ("{a} - {b} =", " {c}"),
    ("{a}-{b}=", "{c}"),
    ("{a} minus {b} is", " {c}."),
    ("The difference of {a} and {b} is", " {c}."),
    ("What is {a} - {b}?", "{a} - {b} = {c}."),
    ("What is {a} minus {b}?", "{a} - {b} = {c}."),
    ("How much is {a} - {b}?", "{a} - {b} = {c}."),
    ("Calculate {a} - {b}.", "{a} - {b} = {c}."),
    ("Subtract {b} from {a}.", "{a} - {b} = {c}."),
    ("{a} - {b}", "{a} - {b} = {c}."),
)


def fill(rng: Random, frames: Sequence[Frame], key: str = "", **fields: object) -> Turn:
    """A turn from one of `frames`. Its key is the question unless one is given."""
    fields |= {name.capitalize(): capitalized(str(value)) for name, value in fields.items()}
    question, answer = pick(rng, frames)
    text = question.format(**fields)
    plain = answer[0] == " " or question[-1] == "="
    return Turn(text, answer.format(**fields).replace("..", "."), key or text, plain)


def capital(rng: Random) -> Turn:
    """The capital of a country."""
    country, city, _ = pick(rng, COUNTRIES)
    return fill(rng, CAPITAL_FRAMES, country=country, capital=city)


def total(rng: Random) -> Turn:
    """A sum of two numbers up to 99, or a difference that is not negative."""
    a, b = rng.randrange(100), rng.randrange(100)
    high, low = max(a, b), min(a, b)
    if rng.random() < 0.5:
        key = "12 + 30" if (low, high) == (12, 30) else f"{low} + {high}"
        return fill(rng, SUM_FRAMES, key=key, a=a, b=b, c=a + b)
    return fill(rng, DIFFERENCE_FRAMES, key=f"{high} - {low}", a=high, b=low, c=high - low)


def calendar(rng: Random) -> Turn:
    """Days and months: which comes after or before, and how long a month is."""
    unit, names = pick(rng, (("day", DAYS), ("month", MONTHS)))
    index = rng.randrange(len(names))
    first, second = names[index], names[(index + 1) % len(names)]
    if unit == "month" and rng.random() < 0.25:
        return fill(rng, LENGTH_FRAMES, first=first, length=MONTH_LENGTHS[index])
    frames = pick(rng, (AFTER_FRAMES, BEFORE_FRAMES))
    return fill(rng, frames, unit=unit, first=first, second=second)


def colour(rng: Random) -> Turn:
    """The colour of a thing."""
    thing, name = pick(rng, facts.COLOURS)
    return fill(rng, COLOUR_FRAMES, thing=thing, colour=name)


def sentence(rng: Random) -> Turn:
    """The rest of a fixed sentence after at least three of its words."""
    words = pick(rng, facts.SENTENCES).split(" ")
    cut = rng.randrange(3, len(words))
    start = " ".join(words[:cut])
    return Turn(start, " " + " ".join(words[cut:]), start, plain=True)


def animal(rng: Random) -> Turn:
    """The young, sound, home or legs of an animal."""
    name, young, sound, home, legs = pick(rng, facts.ANIMALS)
    turn = fill(rng, ANIMAL_FRAMES, animal=name, young=young, sound=sound, home=home, legs=legs)
    question, answer = (
        text.replace(f"a {name}", article(name)).replace(f"A {name}", capitalized(article(name)))
        for text in (turn.question, turn.answer)
    )
    return Turn(question, answer, question, turn.plain)


def opposite(rng: Random) -> Turn:
    """The opposite of a word, either way round."""
    one, other = rng.sample(pick(rng, facts.OPPOSITES), 2)
    return fill(rng, OPPOSITE_FRAMES, one=one, other=other)


def place(rng: Random) -> Turn:
    """The state of a city, the country of a capital or the continent of a country."""
    if rng.random() < 0.35:
        city, _, state = pick(rng, facts.US_CITIES)
        return fill(rng, CITY_FRAMES, city=city, state=state)
    country, city, continent = pick(rng, COUNTRIES)
    return fill(rng, PLACE_FRAMES, country=country, capital=city, continent=continent)


def worded(rng: Random, turn: Turn) -> Turn:
    """The turn as a hurried or a polite person would type it."""
    question = turn.question
    chance = rng.random()
    if turn.plain or chance < 0.75:
        return turn
    if chance < 0.87:
        question = pick(rng, OPENINGS) + question
    elif chance < 0.93:
        question = question.lower()
    else:
        question = question.rstrip("?.")
    return Turn(question, turn.answer, turn.key)
