"""Conversations about sounds as text: made from a seed, split into training and held out."""

import dataclasses
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import numpy as np

from ..media_demo.dialogue import Dialogue, Segment
from ..media_demo.kinds import random_kind
from ..media_demo.words import Turn, hurried, pick
from .kinds import KINDS
from .tones import RATE, Sound, any_hertz, any_sound, play
from .wordings import Sounds

PAD, START, END, BEGIN, SOUND, CLOSE = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|audio_bos|>",
    "<|AUDIO|>",
    "<|audio_eos|>",
)
SPECIAL = (PAD, START, END, BEGIN, SOUND, CLOSE)
"""Tokens in the order of their ids, from 0."""
SYSTEMS = ("You are a helpful assistant.", "Answer briefly.", "You listen to sounds.")


def played(first: int, number: int) -> str:
    """So many sounds as the chat template writes them; the first one has a number, from 1."""
    return "".join(f"Audio {first + i}: {BEGIN}{SOUND}{CLOSE}\n" for i in range(number))


def render(turns: Sequence[Turn], system: str = "") -> tuple[Segment, ...]:
    """The texts of users and the answers to them, as the model's chat template writes them."""
    segments: list[Segment] = []
    before = f"{START}system\n{system}{END}\n" if system else ""
    for turn in turns:
        text = f"{before}{START}user\n{turn.question}{END}\n{START}assistant\n"
        segments += [(text, False), (turn.answer, True), (END, True)]
        before = "\n"
    return tuple(segments)


def turn(rng: Random, kind: str, sounds: Sounds, fresh: int) -> Turn:
    """A question of that kind about the sounds, the last ones of which are played now."""
    made = KINDS[len(sounds)][kind].make(rng, sounds)
    question = hurried(rng, made.question, polite=kind != "talk")
    heard = played(len(sounds) - fresh + 1, fresh)
    if fresh and rng.random() < 0.1:
        return Turn(f"{question}\n{heard.rstrip()}", made.answer)
    return Turn(heard + question, made.answer)


def conversation(rng: Random, kinds: Sequence[str], sounds: Sounds) -> Dialogue[Sound]:
    """A question of each of the kinds, all sounds played in the first turn."""
    turns = [turn(rng, kind, sounds, 0 if i else len(sounds)) for i, kind in enumerate(kinds)]
    system = pick(rng, SYSTEMS) if rng.random() < 0.06 else ""
    return Dialogue(kinds[-1], tuple(sounds), render(turns, system))


def one_by_one(rng: Random, kinds: Sequence[str], sounds: Sounds) -> Dialogue[Sound]:
    """As `conversation` about two sounds, but the second one is played in the second turn.

    The first question is of any kind about one sound, those in `kinds` are about both.
    """
    turns = [turn(rng, random_kind(rng, KINDS[1], sounds[:1]), sounds[:1], 1)]
    turns += [turn(rng, kind, sounds, 0 if i else 1) for i, kind in enumerate(kinds)]
    return Dialogue(kinds[-1], tuple(sounds), render(turns))


def training_dialogue(rng: Random, sounds: Sounds) -> Dialogue[Sound]:
    """A conversation of one to four questions about the sounds."""
    most = (1, 2, 3) if len(sounds) == 2 else (1, 2, 3, 4)
    kinds = [random_kind(rng, KINDS[len(sounds)], sounds) for _ in range(pick(rng, most))]
    make = one_by_one if len(sounds) == 2 and rng.random() < 0.1 else conversation
    return make(rng, kinds, sounds)


def random_sounds(rng: Random, number: int) -> list[Sound]:
    """So many sounds; two are often one tone each."""
    if number == 2 and rng.random() < 0.3:
        return [Sound((any_hertz(rng, pick(rng, ("low", "high"))),)) for _ in range(2)]
    return [any_sound(rng) for _ in range(number)]


LATER = "later_turn"
HELD_OUT_KINDS = (*dict.fromkeys(kind for kinds in KINDS.values() for kind in kinds), LATER)


@dataclasses.dataclass(frozen=True)
class Question:
    """A dialogue with the samples of the sounds it is about."""

    kind: str
    prompt: str
    answer: str
    sounds: tuple[np.ndarray, ...]

    @property
    def data(self) -> dict[str, Any]:
        """As the engine takes them."""
        return {"audio": [(samples, RATE) for samples in self.sounds]}


def held_out(kind: str, count: int) -> Iterator[Question]:
    """`count` questions about sounds that are never in training, always the same ones."""
    rng = Random(f"held out {kind}")
    return (held_out_question(rng, kind) for _ in range(count))


def held_out_question(rng: Random, kind: str) -> Question:
    """One question with new sounds."""
    number = pick(rng, [number for number, kinds in KINDS.items() if kind in kinds] or (1, 2))
    sounds = random_sounds(rng, number)
    while kind != LATER and not KINDS[number][kind].fits(sounds):
        sounds = random_sounds(rng, number)
    later = [random_kind(rng, KINDS[number], sounds) for _ in range(3)]
    make = one_by_one if kind == LATER and number == 2 else conversation
    dialogue = make(rng, later if kind == LATER else [kind], sounds)
    samples = tuple(play(rng, sound) for sound in sounds)
    return Question(kind, dialogue.prompt, dialogue.answer, samples)
