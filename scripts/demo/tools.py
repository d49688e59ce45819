"""Functions with JSON schemas, requests that need them, and the calls that answer."""

import dataclasses
import json
from collections.abc import Sequence
from random import Random
from typing import Any

from facts import US_CITIES, WORLD_CITIES
from render import call_text
from slots import GENERIC, SLOTS, Slot
from turns import Turn, article, capitalized, is_held, pick

VERBS: dict[str, Sequence[str]] = {
    "get": ("get", "show me", "give me"),
    "find": ("find", "look for"),
    "book": ("book", "reserve"),
    "create": ("create", "make"),
    "delete": ("delete", "remove"),
    "update": ("update", "change"),
    "send": ("send",),
    "order": ("order",),
    "set": ("set",),
    "start": ("start", "begin"),
    "stop": ("stop", "end"),
    "play": ("play",),
    "add": ("add",),
    "open": ("open",),
    "close": ("close", "shut"),
    "check": ("check",),
    "share": ("share",),
    "plan": ("plan",),
    "cancel": ("cancel",),
    "print": ("print",),
    "save": ("save", "store"),
    "buy": ("buy", "purchase"),
    "rent": ("rent",),
    "read": ("read",),
    "write": ("write",),
    "move": ("move",),
}
"""The verb in a function's name, and how a user may say it."""

NOUNS = ("hotel", "flight", "table", "taxi", "room", "alarm", "timer", "reminder", "note", "list")
NOUNS += ("song", "video", "movie", "ticket", "package", "invoice", "report", "meeting", "event")
NOUNS += ("photo", "file", "folder", "pizza", "book", "recipe", "task", "project", "account")
NOUNS += ("door", "light", "window", "car", "train", "bus", "map", "route", "playlist", "contact")
NOUNS += ("document", "lamp", "heater", "shirt", "chair", "phone", "garden", "camera", "printer")
NOUNS += ("robot", "truck", "boat", "letter", "gift", "coupon", "article", "bike", "lesson")
ADJECTIVES = ("new", "old", "office", "family", "daily", "private", "city", "night", "cheap")

REQUESTS = ("{}.", "Please {}.", "Can you {}?", "Could you {}?", "I want you to {}.", "{}, please.")
REQUESTS += (
    "I need you to {}.",
    "Would you {}?",
    "Hey, {}.",
    "{}",
    "Now {}.",
    "Can you please {}?",
)

CANNOT = "I have no function for that."


@dataclasses.dataclass(frozen=True)
class Function:
    """A function that a model may call."""

    name: str
    description: str
    slots: tuple[tuple[str, Slot], ...]
    required: frozenset[str]
    verb: str
    noun: str

    def schema(self, rng: Random) -> dict[str, Any]:
        """The function as a tool of a chat request. The wording of the schema varies."""
        described = rng.random() < 0.6
        properties = {name: property_schema(rng, slot, described) for name, slot in self.slots}
        parameters: dict[str, Any] = {"type": "object", "properties": properties}
        required = [name for name, _ in self.slots if name in self.required]
        if required or rng.random() < 0.5:
            parameters["required"] = required
        if rng.random() < 0.05:
            parameters["additionalProperties"] = False
        return tool(self.name, self.description, parameters)


def tool(name: str, description: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """The form tools have in a chat request."""
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


def property_schema(rng: Random, slot: Slot, described: bool) -> dict[str, Any]:
    """The JSON schema of one parameter."""
    schema: dict[str, Any] = {"type": slot.kind}
    if slot.options:
        schema["enum"] = list(slot.options)
    if described:
        schema["description"] = slot.description
    if rng.random() < 0.3:
        schema = dict(reversed(schema.items()))
    return schema


def draw_function(rng: Random, held: bool) -> Function:
    """A function whose name is on the wanted side of the split."""
    while True:
        verb, noun = pick(rng, tuple(VERBS)), pick(rng, NOUNS)
        words = [verb, pick(rng, ADJECTIVES), noun] if rng.random() < 0.2 else [verb, noun]
        if is_held(" ".join(words)) == held:
            break
    name = "_".join(words)
    if rng.random() < 0.15:
        name = words[0] + "".join(word.capitalize() for word in words[1:])
    slots_at_hand = SLOTS if rng.random() < 0.4 else SLOTS[: -len(GENERIC)]
    chosen = rng.sample(slots_at_hand, pick(rng, (1, 2, 3), (3, 4, 2)))
    slots = tuple((pick(rng, slot.names), slot) for slot in chosen)
    required = frozenset(name for name, _ in slots if rng.random() < 0.75)
    thing = article(" ".join(words[1:]))
    return Function(name, f"{verb.capitalize()} {thing}", slots, required, verb, noun)


def request(rng: Random, function: Function) -> tuple[str, dict[str, Any]]:
    """What a user says to have `function` called, and the arguments they mean."""
    values = {
        name: slot.value(rng)
        for name, slot in function.slots
        if name in function.required or rng.random() < 0.5
    }
    phrases = [
        pick(rng, slot.phrases).format(values[name], name=name)
        for name, slot in function.slots
        if name in values
    ]
    rng.shuffle(phrases)
    thing = function.description.split(" ", 1)[1]
    if rng.random() < 0.4:
        thing = pick(rng, ("my", "the")) + " " + thing.split(" ", 1)[1]
    text = f"{pick(rng, VERBS[function.verb])} {thing}{''.join(phrases)}"
    text = pick(rng, REQUESTS).format(text)
    return capitalized(text), values


def toolbox(rng: Random, wanted: Sequence[Function], count: int) -> list[Function]:
    """`wanted` and others, `count` in all and shuffled, no two with both verb and noun alike."""
    functions = {(function.verb, function.noun): function for function in wanted}
    while len(functions) < count:
        other = draw_function(rng, held=False)
        functions.setdefault((other.verb, other.noun), other)
    shuffled = list(functions.values())
    rng.shuffle(shuffled)
    return shuffled


@dataclasses.dataclass(frozen=True)
class Scene:
    """Tools, what the user says about them, and the right answer (a call, or plain words)."""

    tools: list[dict[str, Any]]
    turn: Turn
    calls: tuple[tuple[str, dict[str, Any]], ...] = ()


def function_scene(rng: Random, held: bool) -> Scene:
    """A request for one of one to four functions with made-up names."""
    function = draw_function(rng, held)
    text, values = request(rng, function)
    functions = toolbox(rng, [function], pick(rng, (1, 2, 3, 4), (3, 4, 2, 1)))
    tools = [each.schema(rng) for each in functions]
    answer = call_text(function.name, values)
    return Scene(tools, Turn(text, answer, text), ((function.name, values),))


def missing_scene(rng: Random, held: bool) -> Scene:
    """A request for a function that is not there, nor anything like it. Sometimes none is there."""
    function = draw_function(rng, held)
    text, _ = request(rng, function)
    if rng.random() < 0.25:
        text = weather_question(rng, 1, held)[0]
    functions = [each for each in toolbox(rng, [], 3) if function.noun != each.noun]
    functions = [each for each in functions if function.verb != each.verb]
    tools = [each.schema(rng) for each in functions[: rng.randrange(1, 4)]]
    return Scene(tools, Turn(text, CANNOT, text))


WEATHER_QUESTIONS = (
    "What's the weather like in {}?",
    "What is the weather like in {}?",
    "What is the weather in {}?",
    "What's the weather in {}?",
    "How is the weather in {}?",
    "How's the weather in {}?",
    "What is the weather like in {} today?",
    "What's the weather in {} right now?",
    "How warm is it in {}?",
    "How cold is it in {} today?",
    "Is it raining in {}?",
    "Is it warm in {}?",
    "Tell me the weather in {}.",
    "Show me the weather in {}.",
    "Get the weather for {}.",
    "Can you tell me the weather in {}?",
    "What is the temperature in {}?",
    "What's the current weather in {}?",
    "I want to know the weather in {}.",
    "weather in {}",
)
WEATHER_NAMES = ("get_weather", "get_current_weather", "get_temperature", "weather", "getWeather")
WEATHER_TEXTS = ("Get the current weather in a given location", "Get the weather for a location")
WEATHER_TEXTS += (
    "Get the current weather",
    "Returns the weather of a place",
    "Look up the weather",
)
LOCATION_TEXTS = (
    "City and state, e.g., 'San Francisco, CA'",
    "The city and state, e.g. San Francisco, CA",
    "The location",
    "",
)
UNITS = ("celsius", "fahrenheit")
STATES = {city: f"{city}, {code}" for city, code, _ in US_CITIES}


def weather_tool(rng: Random) -> dict[str, Any]:
    """The schema of a function that tells the weather: the usual one, or one like it."""
    usual = rng.random() < 0.4
    place = "location" if usual or rng.random() < 0.7 else "city"
    text = LOCATION_TEXTS[0] if usual else pick(rng, LOCATION_TEXTS)
    properties: dict[str, Any] = {place: {"type": "string"}}
    if place == "location" and text:
        properties[place]["description"] = text
    if usual or rng.random() < 0.7:
        units = list(UNITS if usual or rng.random() < 0.7 else reversed(UNITS))
        properties["unit"] = {"type": "string", "enum": units}
    required = list(properties) if usual or rng.random() < 0.5 else [place]
    parameters = {"type": "object", "properties": properties, "required": required}
    name = "get_weather" if usual else pick(rng, WEATHER_NAMES)
    return tool(name, WEATHER_TEXTS[0] if usual else pick(rng, WEATHER_TEXTS), parameters)


def weather_arguments(schema: dict[str, Any], city: str, unit: str | None) -> dict[str, Any]:
    """The arguments for `city`. A location names the state; the unit is the one used there."""
    properties = schema["function"]["parameters"]["properties"]
    arguments = {"location": STATES.get(city, city)} if "location" in properties else {"city": city}
    if "unit" in properties:
        arguments["unit"] = unit or UNITS[city in STATES]
    return arguments


def weather_question(rng: Random, count: int, held: bool) -> tuple[str, list[str]]:
    """A question about the weather in `count` cities, and the cities."""
    while True:
        groups = [pick(rng, (tuple(STATES), WORLD_CITIES)) for _ in range(count)]
        cities = [pick(rng, group) for group in groups]
        text = pick(rng, WEATHER_QUESTIONS).format(" and ".join(cities))
        if is_held(text) == held and len(set(cities)) == count:
            return text, cities


def weather_scene(rng: Random, held: bool) -> Scene:
    """The weather in one city, seldom in two, with or without other functions at hand."""
    count = 2 if rng.random() < 0.12 else 1
    text, cities = weather_question(rng, count, held)
    schema, unit = weather_tool(rng), None
    if count == 1 and "unit" in schema["function"]["parameters"]["properties"]:
        unit = pick(rng, UNITS) if rng.random() < 0.25 else None
    if unit:
        text = f"{text.rstrip('?.')} in {unit}{text[-1] if text[-1] in '?.' else ''}"
    name = schema["function"]["name"]
    calls = tuple((name, weather_arguments(schema, city, unit)) for city in cities)
    others = [each.schema(rng) for each in toolbox(rng, [], pick(rng, (0, 1, 2), (3, 2, 1)))]
    others.insert(rng.randrange(len(others) + 1), schema)
    answer = "; ".join(call_text(name, arguments) for name, arguments in calls)
    return Scene(others, Turn(text, answer, text), calls)


def tool_scene(rng: Random, held: bool) -> Scene:
    """Any request that ends in a call, or in the word that there is no function for it."""
    makers = (function_scene, weather_scene, missing_scene)
    return pick(rng, makers, (10, 4, 1.5))(rng, held)


STATUS = ("ok", "done", "open", "closed", "ready", "late", "full", "sent", "sunny", "cloudy")
STATUS += ("rainy", "windy", "booked", "saved", "cold", "warm")
FOUND = (*STATUS, "Getting the weather for", "Getting it for", "Found it:", "Here it is:", "Done:")
KEYS = ("status", "state", "condition", "result", "answer")
NUMBER_KEYS = ("id", "price", "temperature", "count", "total", "number", "score", "minutes")


def result(rng: Random, scene: Scene) -> tuple[str, str]:
    """What the called function gives back, and what the model then tells the user."""
    if rng.random() < 0.4:
        values = ", ".join(str(value) for value in scene.calls[0][1].values())
        text = f"{pick(rng, FOUND)} {values}".strip() + pick(rng, ("", ".", "..."))
        return text, f"Here is what I found: {text}"
    fields: dict[str, Any] = {}
    if rng.random() < 0.75:
        fields[pick(rng, KEYS)] = pick(rng, STATUS)
    if rng.random() < 0.75 or not fields:
        fields[pick(rng, NUMBER_KEYS)] = rng.randrange(1, 1000)
    items = list(fields.items())
    rng.shuffle(items)
    answer = " and ".join(f"the {name} is {value}" for name, value in items)
    return json.dumps(dict(items)), capitalized(answer) + "."
