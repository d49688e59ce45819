"""The embedded model that hears, through the engine: it ships, is small, and knows tones."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from quire import Engine, SamplingParams

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "models" / "audio_demo"
sys.path.insert(0, str(ROOT))
evaluate, scores = (
    importlib.import_module(f"scripts.{name}")
    for name in ("audio_demo.evaluate", "media_demo.scores")
)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine("audio-demo", enforce_eager=True, use_tqdm_on_load=False) as engine:
        yield engine


def played(*hertz: float, rate: int = 16000, seconds: float = 0.3, pause: float = 0.2) -> Any:
    """Sines with pauses between them, and their rate."""
    time = np.arange(int(seconds * rate)) / rate
    silence = np.zeros(int(pause * rate))
    parts = [part for each in hertz for part in (0.5 * np.sin(2 * np.pi * each * time), silence)]
    return np.concatenate([silence, *parts]), rate


def said(engine: Engine, question: str, *sounds: Any) -> str:
    parts: list[dict[str, Any]] = [{"type": "audio", "audio": sound} for sound in sounds]
    parts.append({"type": "text", "text": question})
    messages = [{"role": "user", "content": parts}]
    (output,) = engine.chat(messages, SamplingParams(temperature=0), use_tqdm=False)
    assert output.outputs[0].finish_reason == "stop"
    return output.outputs[0].text


def test_it_is_at_most_four_megabytes() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 4_000_000


def test_it_runs_in_bfloat16(engine: Engine) -> None:
    assert {value.dtype for value in engine.params.values()} == {jnp.dtype(jnp.bfloat16)}


def test_it_answers_what_it_was_held_out_from(engine: Engine) -> None:
    """At least 95 % of questions about new sounds, to the letter, all of them in one call."""
    questions = evaluate.held_out_questions(20)
    accuracy = scores.accuracy(questions, scores.answers(engine, questions))
    assert accuracy["all"] >= 0.95, accuracy


@pytest.mark.parametrize(
    ("hertz", "question", "answer"),
    [
        ((), "How many tones are there?", "None."),
        ((440, 440, 440), "How many tones do you hear?", "Three."),
        ((250, 1200), "What do you hear?", "Two tones: low, high."),
        ((1500,), "Is the tone high or low?", "High."),
        ((300, 1000, 2000, 200), "Is the last tone high?", "No, it is low."),
        ((300, 1000, 2000, 200), "How many high tones are there?", "Two."),
        ((440, 330), "Which tone is higher?", "The first."),
        ((330, 500), "Does the pitch go up or down?", "Up."),
        ((1000, 2000, 1400), "Which tone is the highest?", "The second."),
    ],
)
def test_it_hears_one_sound(
    engine: Engine, hertz: tuple[float, ...], question: str, answer: str
) -> None:
    assert said(engine, question, played(*hertz)) == answer


@pytest.mark.parametrize("rate", [8000, 22050, 48000])
def test_it_hears_sounds_of_any_rate(engine: Engine, rate: int) -> None:
    sound = played(1000, 300, rate=rate, seconds=0.5)
    assert said(engine, "What is in the sound?", sound) == "Two tones: high, low."


def test_it_compares_two_sounds(engine: Engine) -> None:
    sounds = played(300, 300, 300), played(1200)
    answers = {
        "Which sound has more tones?": "The first.",
        "Which one has fewer tones?": "The second.",
        "How many tones are in the first sound?": "Three.",
        "Do they have the same number of tones?": "No, three and one.",
        "Which sound has the higher tone?": "The second.",
    }
    assert {question: said(engine, question, *sounds) for question in answers} == answers
    assert said(engine, "Which sound has more tones?", *sounds[::-1]) == "The second."


def test_it_knows_when_there_is_no_sound(engine: Engine) -> None:
    assert said(engine, "What do you hear?") == "I hear no sound. Please play me one."
