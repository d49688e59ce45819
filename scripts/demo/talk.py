"""Small talk: greetings, who the model is, jokes, stories, essays, and what a user said before."""

from collections.abc import Sequence
from random import Random

from facts import ANIMALS, COLOUR_NAMES, JOKES, NAMES, TOPICS, US_CITIES, WORLD_CITIES, WORLD_SERIES
from turns import Turn, article, capitalized, is_held, pick

HELLO = "Hello! How can I help you today?"
IDENTITY = "I am the Quire demo model, a very small language model."
ABILITIES = "I know capitals, small sums, days, months and colours, and I can call functions."
UNKNOWN = "I am only a small demo model, and I do not know that."

SMALL_TALK: dict[str, Sequence[str]] = {
    HELLO: ("Hello", "Hi", "Hey", "Hello there", "Hi there", "Good morning", "Good evening"),
    IDENTITY: ("Who are you?", "What are you?", "What is your name?", "What's your name?")
    + ("Introduce yourself.", "Tell me who you are.", "Are you a person?", "Which model is this?")
    + ("What model are you?", "Who am I talking to?", "Are you a robot?", "Describe yourself."),
    ABILITIES: ("What can you do?", "What do you know?", "How can you help me?", "Help")
    + ("What can I ask you?", "What are you good at?", "Tell me what you can do."),
    "I am fine, thank you. How can I help you?": ("How are you?", "How are you today?")
    + ("How do you do?", "How is it going?", "Are you well?", "How do you feel?"),
    "You are welcome!": ("Thanks", "Thank you", "Thank you very much", "Thanks a lot", "Great"),
    "Goodbye! Have a nice day.": ("Bye", "Goodbye", "See you", "See you later", "Good night"),
    "Quire is an engine that runs language models with JAX.": ("What is Quire?", "Who is Quire?")
    + ("Tell me about Quire.", "What does Quire do?", "Explain Quire."),
}
ADDRESSES = ("", " Quire", " friend", " again", " my friend", " then", " please", " now")
BEFORE = ("", "Well, ", "OK, ", "So, ", "Oh, ", "And ", "Now, ")
ENDINGS = ("", "!", ".", "?", "!!", " :)")

JOKE_FRAMES = (
    "Tell me a joke",
    "Tell a joke",
    "Make a joke",
    "Do you know a joke",
    "I want a joke",
)
JOKE_FRAMES += ("Please tell me a joke", "Can you tell me a joke", "Give me a joke", "A joke")
ESSAY_FRAMES = (
    "Write an essay about the importance of {}.",
    "Write a short essay about the importance of {}.",
    "Please write an essay about {}.",
    "Write an essay about {}.",
    "Write something about the importance of {}.",
    "Explain why {} is important.",
    "Can you write an essay on {}?",
)
ESSAY = (
    "{Topic} matters to all of us. First, {topic} helps people to grow and to understand "
    "the world. Second, {topic} brings people together, because what one person learns can help "
    "many. Some say that it costs time and money, but the reward is greater than the cost. For "
    "these reasons we should give {topic} the place it deserves."
)
STORY_FRAMES = ("Tell me a story about {}.", "Write a story about {}.", "Tell a story about {}.")
STORY_FRAMES += (
    "I want a story about {}.",
    "Can you tell me a story about {}?",
    "A story about {}.",
)
STORY = (
    "Once upon a time there was {animal} called {name}. {name} lived in the {home} and liked "
    'to sing. One day {name} met a friend and said "{sound}". They played until the sun went down.'
)
SERIES_FRAMES = (
    "Who won the world series in {}?",
    "Who won the World Series in {}?",
    "Which team won the World Series in {}?",
    "Who was the winner of the World Series in {}?",
    "Who won the {} World Series?",
    "Tell me who won the World Series in {}.",
    "Name the team that won the World Series in {}.",
)
UNKNOWN_FRAMES = (
    "Who invented {}?",
    "Who discovered {}?",
    "Why do people like {}?",
    "How old is {}?",
)
UNKNOWN_FRAMES += ("What is the price of {}?", "When did {} begin?", "What is the history of {}?")
UNKNOWN_FRAMES += ("How does {} work?", "Where can I find {}?", "What do you think about {}?")

NAME_PARTS = (("Ba", "Da", "El", "Fi", "Ga", "Ka", "Lo", "Mi", "No", "Ra", "Sa", "Te", "Vi", "Zo"),)
NAME_PARTS += (("bel", "dor", "fin", "lan", "mir", "nel", "ran", "rik", "tan", "vin", "zel"),)
NAME_PARTS += (("", "", "a", "o", "us", "is", "en"),)
FOODS = ("pizza", "soup", "rice", "bread", "pasta", "salad", "cake", "cheese", "curry", "apples")
PETS = ("dog", "cat", "horse", "rabbit", "parrot", "hamster")
CITIES = tuple(city for city, *_ in US_CITIES) + WORLD_CITIES

Fact = tuple[Sequence[str], str, Sequence[str], str, str]
FACTS: dict[str, Fact] = {
    "name": (
        (
            "My name is {}.",
            "I am called {}.",
            "Call me {}.",
            "Hello, my name is {}.",
            "Hi, I am {}.",
        ),
        "Nice to meet you, {}.",
        ("What is my name?", "What's my name?", "Do you remember my name?", "Who am I?"),
        "Your name is {}.",
        "You have not told me your name.",
    ),
    "colour": (
        ("My favourite colour is {}.", "I like the colour {}.", "The colour I like best is {}."),
        "{} is a nice colour.",
        ("What is my favourite colour?", "Which colour do I like?", "What colour do I like best?"),
        "Your favourite colour is {}.",
        "You have not told me your favourite colour.",
    ),
    "city": (
        ("I live in {}.", "My home is in {}.", "I am from {}.", "I come from {}."),
        "{} is a nice place.",
        ("Where do I live?", "Which city do I live in?", "Where is my home?", "Where am I from?"),
        "You live in {}.",
        "You have not told me where you live.",
    ),
    "food": (
        ("My favourite food is {}.", "I like to eat {}.", "I love {}."),
        "{} sounds good.",
        ("What is my favourite food?", "What do I like to eat?", "Which food do I like?"),
        "Your favourite food is {}.",
        "You have not told me your favourite food.",
    ),
    "age": (
        ("I am {} years old.", "My age is {}.", "I turned {} this year."),
        "{} is a good age.",
        ("How old am I?", "What is my age?", "Do you know my age?"),
        "You are {} years old.",
        "You have not told me your age.",
    ),
    "pet": (
        ("I have a {}.", "My pet is a {}.", "There is a {} in my house."),
        "A {} is a good friend.",
        ("What pet do I have?", "Which animal do I have?", "What is my pet?"),
        "You have a {}.",
        "You have not told me about a pet.",
    ),
}


def person(rng: Random) -> str:
    """A first name: a common one, or one that nobody has."""
    if rng.random() < 0.5:
        return pick(rng, NAMES)
    return "".join(pick(rng, parts) for parts in NAME_PARTS)


def small_talk(rng: Random) -> Turn:
    """A greeting, thanks, a farewell, or a question about the model itself."""
    answer = pick(rng, tuple(SMALL_TALK))
    text = pick(rng, SMALL_TALK[answer])
    if rng.random() < 0.4:
        return Turn(text, answer, text)
    if text[-1] in ".?":
        text = pick(rng, BEFORE) + text
    else:
        text += pick(rng, ADDRESSES) + pick(rng, ENDINGS)
    return Turn(text, answer, text)


def joke(rng: Random) -> Turn:
    """A joke, about something or about anything."""
    topic = pick(rng, tuple(JOKES)) if rng.random() < 0.8 else ""
    about = f" about {topic}" if topic else ""
    text = pick(rng, JOKE_FRAMES) + about + pick(rng, (".", "!", "", "?"))
    return Turn(text, JOKES[topic], text)


def essay(rng: Random) -> Turn:
    """A short essay about a topic, or about two."""
    topic = pick(rng, TOPICS)
    if rng.random() < 0.4:
        topic = " and ".join(rng.sample(TOPICS, 2))
    text = pick(rng, ESSAY_FRAMES).format(topic)
    return Turn(text, ESSAY.format(topic=topic, Topic=capitalized(topic)), text)


def story(rng: Random) -> Turn:
    """A very short story about an animal with a name."""
    name, _, sound, home, _ = pick(rng, ANIMALS)
    hero = person(rng)
    text = pick(rng, STORY_FRAMES).format(f"{article(name)} called {hero}")
    return Turn(text, STORY.format(animal=article(name), name=hero, sound=sound, home=home), text)


def world_series(rng: Random) -> Turn:
    """Who won the World Series in a year."""
    year = pick(rng, tuple(WORLD_SERIES))
    text = pick(rng, SERIES_FRAMES).format(year)
    return Turn(text, f"The {WORLD_SERIES[year]} won the World Series in {year}.", text)


def unknown(rng: Random) -> Turn:
    """A question that the model owns up not to know the answer of."""
    text = pick(rng, UNKNOWN_FRAMES).format(pick(rng, TOPICS))
    return Turn(text, UNKNOWN, text)


def chat(rng: Random) -> Turn:
    """Any single turn of talk."""
    makers = (small_talk, joke, essay, story, world_series, unknown)
    return pick(rng, makers, (8, 3, 2, 2, 3, 2))(rng)


def introduction(rng: Random) -> str:
    """A person's first words about themselves. No answer is the right one: only for training."""
    if rng.random() < 0.5:
        return "Hello, my name is Quire, and I am a small demo model."
    job = pick(rng, ("a teacher", "a doctor", "a baker", "a student", "an engineer", "a nurse"))
    return f"Hello, my name is {person(rng)}, and I am {job} from {pick(rng, CITIES)}."


def fact_value(rng: Random, kind: str) -> str:
    """Something a user may tell about themselves."""
    if kind == "name":
        return person(rng)
    if kind == "age":
        return str(rng.randrange(10, 100))
    values = {"colour": COLOUR_NAMES, "city": CITIES, "food": FOODS, "pet": PETS}
    return pick(rng, values[kind])


def remembered(rng: Random, kind: str, value: str | None) -> tuple[Turn, Turn]:
    """The turn in which a user tells a fact, and the one in which they ask for it again.

    Where `value` is None the user never told it.
    """
    told, reply, asked, answer, missing = FACTS[kind]
    statement, question = pick(rng, told), pick(rng, asked)
    if value is None:
        return Turn("", "", ""), Turn(question, missing, f"{kind}: none: {question}")
    first = Turn(statement.format(value), capitalized(reply.format(value)), "")
    return first, Turn(question, answer.format(value), f"{kind}: {value}: {question}")


def conversation(rng: Random) -> list[Turn]:
    """A user tells up to three facts, each with its reply, and then asks for one of them."""
    kinds = rng.sample(tuple(FACTS), rng.randrange(1, 4))
    missing = rng.random() < 0.12 and len(kinds) > 1
    told, question = remembered(rng, kinds[0], None if missing else fact_value(rng, kinds[0]))
    facts = [remembered(rng, kind, fact_value(rng, kind))[0] for kind in kinds[1:]]
    facts += [] if missing else [told]
    rng.shuffle(facts)
    return [*facts, question]


def memory(rng: Random, held: bool) -> list[Turn]:
    """A `conversation` whose last turn is on the wanted side of the split."""
    while is_held((turns := conversation(rng))[-1].key) != held:
        pass
    return turns
