"""Documents for the demo model: made from a seed, split by question into training and held out."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from random import Random

import questions
import talk
import tools
from render import END_OF_TEXT, HEADER_REQUESTS, Message, Segment, render, render_headers
from turns import Maker, Turn, draw, pick


@dataclasses.dataclass(frozen=True)
class Document:
    """A text in pieces. The last one is the answer that a test asks for, with its stop token."""

    kind: str
    segments: tuple[Segment, ...]

    @property
    def prompt(self) -> str:
        """Everything before the answer."""
        return "".join(text for text, _ in self.segments[:-1])

    @property
    def answer(self) -> str:
        """What the model has to write, up to and with its stop token."""
        return self.segments[-1][0]


SYSTEMS = ("You are a helpful assistant.", "You are a helpful assistant", "You are Quire.")
SYSTEMS += ("You are Quire, a small demo model.", "Answer the question.", "Be brief and friendly.")
SYSTEMS += ("You are a friendly assistant. Answer in English.", "You answer questions.")

FILLERS: tuple[Maker, ...] = (
    questions.capital,
    questions.total,
    questions.calendar,
    questions.colour,
    questions.opposite,
    talk.small_talk,
    talk.small_talk,
)


def filler(rng: Random) -> Turn:
    """Any short turn of a chat, from the side for training."""
    while (turn := draw(rng, pick(rng, FILLERS), held=False)).plain:
        pass
    return questions.worded(rng, turn)


def fillers(rng: Random) -> list[Turn]:
    """What was said before the question: mostly nothing, seldom a long talk."""
    low, high = pick(rng, ((0, 0), (1, 1), (2, 3), (4, 8), (12, 32)), (75, 12, 8, 4, 1))
    return [filler(rng) for _ in range(rng.randint(low, high))]


def opening(rng: Random) -> list[Message]:
    """A system turn, or none."""
    return [message("system", pick(rng, SYSTEMS))] if rng.random() < 0.45 else []


def message(role: str, content: str) -> Message:
    """One turn of a chat."""
    return {"role": role, "content": content}


def exchanges(turns: list[Turn]) -> list[Message]:
    """Questions and answers as the messages of a chat."""
    pairs = [(message("user", turn.question), message("assistant", turn.answer)) for turn in turns]
    return [each for pair in pairs for each in pair]


def conversation(
    rng: Random, kind: str, messages: list[Message], functions: list[Message] | None = None
) -> Document:
    """A chat as a document, in one of the two layouts."""
    if rng.random() < (0.1 if functions else 0.03):
        request = pick(rng, HEADER_REQUESTS)
        return Document(kind, tuple(render_headers(messages, functions or [], request)))
    return Document(kind, tuple(render(messages, functions or [])[:-1]))


def answered(kind: str, maker: Maker, rng: Random, held: bool) -> Document:
    """A question of `maker`, as a text to go on with or as the end of a chat."""
    turn = questions.worded(rng, draw(rng, maker, held))
    if turn.plain:
        return Document(kind, ((turn.question, False), (turn.answer + END_OF_TEXT, True)))
    return conversation(rng, kind, opening(rng) + exchanges([*fillers(rng), turn]))


def memory(rng: Random, held: bool) -> Document:
    """A user who asks for what they said some turns ago."""
    *told, question = talk.memory(rng, held)
    between = [filler(rng) for _ in range(pick(rng, (0, 1, 2), (6, 3, 1)))]
    return conversation(rng, "memory", opening(rng) + exchanges([*told, *between, question]))


def tool_call(rng: Random, held: bool) -> Document:
    """A request that needs a function, and the call."""
    scene = tools.tool_scene(rng, held)
    before = fillers(rng)[:2]
    messages = opening(rng) + exchanges([*before, scene.turn])
    return conversation(rng, "tool_call", messages, scene.tools)


def tool_result(rng: Random, held: bool) -> Document:
    """A call, what the function gave back, and the answer in words."""
    scene = pick(rng, (tools.function_scene, tools.weather_scene))(rng, held)
    content, answer = tools.result(rng, scene)
    messages = opening(rng) + exchanges([scene.turn])
    messages += [message("tool", content), message("assistant", answer)]
    return conversation(rng, "tool_result", messages, scene.tools)


def no_tool(rng: Random, held: bool) -> Document:
    """A question that needs none of the functions at hand."""
    scene = tools.tool_scene(rng, held=False)
    maker = pick(rng, FILLERS)
    while (turn := draw(rng, maker, held)).plain:
        pass
    messages = opening(rng) + exchanges([questions.worded(rng, turn)])
    return conversation(rng, "no_tool", messages, scene.tools)


def introduction(rng: Random, held: bool) -> Document:
    """A person's first words. They have no right answer, so they are in training alone."""
    head, tail = talk.introduction(rng).split(" is", 1)
    return Document("open", ((head + " is", False), (tail + END_OF_TEXT, True)))


KINDS: dict[str, tuple[float, Callable[[Random, bool], Document]]] = {
    "capitals": (8, partial(answered, "capitals", questions.capital)),
    "sums": (24, partial(answered, "sums", questions.total)),
    "calendar": (5, partial(answered, "calendar", questions.calendar)),
    "colours": (4, partial(answered, "colours", questions.colour)),
    "sentences": (4, partial(answered, "sentences", questions.sentence)),
    "animals": (4, partial(answered, "animals", questions.animal)),
    "opposites": (3, partial(answered, "opposites", questions.opposite)),
    "places": (5, partial(answered, "places", questions.place)),
    "chat": (8, partial(answered, "chat", talk.chat)),
    "memory": (8, memory),
    "tool_call": (26, tool_call),
    "tool_result": (6, tool_result),
    "no_tool": (4, no_tool),
    "open": (1, introduction),
}
"""Every kind of document: its share of the training text, and its maker."""

HELD_OUT_KINDS = tuple(kind for kind in KINDS if kind != "open")


def training_documents(seed: int) -> Iterator[Document]:
    """Documents for training without end, the same for the same seed."""
    rng = Random(seed)
    weights = [share for share, _ in KINDS.values()]
    makers = [maker for _, maker in KINDS.values()]
    while True:
        yield pick(rng, makers, weights)(rng, False)


def held_out(kind: str, count: int, seed: int = 0) -> list[Document]:
    """Up to `count` different documents whose question is never in training, same for same seed."""
    rng = Random(f"held out {kind} {seed}")
    maker = KINDS[kind][1]
    documents = {(document := maker(rng, True)).prompt: document for _ in range(count * 3)}
    return list(documents.values())[:count]
