"""The embedded model that sees, through the engine: it ships, is small, and knows shapes."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageDraw

from quire import Engine, SamplingParams
from quire.engine.model import EMBEDDED

ROOT = Path(__file__).parents[1]
FOLDER = EMBEDDED["vision-demo"]
sys.path.insert(0, str(ROOT))
evaluate, scores = (
    importlib.import_module(f"scripts.{name}")
    for name in ("vision_demo.evaluate", "media_demo.scores")
)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine("vision-demo", enforce_eager=True, use_tqdm_on_load=False) as engine:
        yield engine


def drawn(shape: str, colour: str) -> Image.Image:
    """A picture of the kinds that Pillow draws by itself."""
    picture = Image.new("RGB", (200, 150), "white")
    pen = ImageDraw.Draw(picture)
    if shape == "circle":
        pen.ellipse((60, 40, 120, 100), fill=colour)
    elif shape == "square":
        pen.rectangle((50, 30, 140, 120), fill=colour)
    else:
        pen.polygon(((100, 20), (160, 124), (40, 124)), fill=colour)
    return picture


def moving(shape: str, colour: str, way: tuple[int, int], frames: int = 4) -> np.ndarray:
    """Frames of a shape that moves that many pixels from each to the next, along one edge, past
    a square in a corner."""
    pictures = []
    for i in range(frames):
        picture = Image.new("RGB", (192, 192), "white")
        pen = ImageDraw.Draw(picture)
        x, y = ((96 if step else 44) + step * (i - (frames - 1) / 2) for step in way)
        box = (x - 32, y - 32, x + 32, y + 32)
        if shape == "circle":
            pen.ellipse(box, fill=colour)
        else:
            pen.rectangle(box, fill=colour)
        pen.rectangle((119, 119, 173, 173), fill="black")
        pictures.append(np.asarray(picture))
    return np.stack(pictures)


def said(engine: Engine, question: str, *media: Image.Image | np.ndarray) -> str:
    parts: list[dict[str, Any]] = []
    for each in media:
        kind = "video" if isinstance(each, np.ndarray) else "image_pil"
        parts.append({"type": kind, kind: each})
    parts.append({"type": "text", "text": question})
    messages = [{"role": "user", "content": parts}]
    (output,) = engine.chat(messages, SamplingParams(temperature=0), use_tqdm=False)
    assert output.outputs[0].finish_reason == "stop"
    return output.outputs[0].text.strip()


def test_it_is_at_most_four_megabytes() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 4_000_000


def test_it_runs_in_bfloat16(engine: Engine) -> None:
    assert {value.dtype for value in engine.params.values()} == {jnp.dtype(jnp.bfloat16)}


def test_it_answers_what_it_was_held_out_from(engine: Engine) -> None:
    """At least 95 % of questions about new pictures and clips, to the letter, all in one call."""
    questions = evaluate.held_out_questions(20)
    accuracy = scores.accuracy(questions, scores.answers(engine, questions))
    assert accuracy["all"] >= 0.95, accuracy


@pytest.mark.parametrize(
    ("shape", "colour", "question", "answer"),
    [
        ("circle", "red", "What is in the picture?", "A red circle."),
        ("square", "blue", "What colour is it?", "Blue."),
        ("triangle", "green", "What shape is this?", "A triangle."),
        ("square", "black", "Is it a circle?", "No, it is a square."),
        ("circle", "orange", "Is this an orange circle?", "Yes."),
    ],
)
def test_it_sees_one_picture(
    engine: Engine, shape: str, colour: str, question: str, answer: str
) -> None:
    assert said(engine, question, drawn(shape, colour)) == answer


def test_it_compares_two_pictures(engine: Engine) -> None:
    pictures = drawn("circle", "red"), drawn("square", "red")
    answers = {
        "What is in these pictures?": "A red circle and a red square.",
        "What differs?": "The shape.",
        "Do they have the same colour?": "Yes, red.",
        "Which one is a square?": "The second.",
    }
    assert {question: said(engine, question, *pictures) for question in answers} == answers
    assert said(engine, "Which one is a square?", *pictures[::-1]) == "The first."


def test_it_knows_when_there_is_no_picture(engine: Engine) -> None:
    assert said(engine, "What is this?") == "I see no picture. Please show me one."


@pytest.mark.parametrize(
    ("way", "name"),
    [((24, 0), "right"), ((-24, 0), "left"), ((0, 24), "down"), ((0, -24), "up")],
)
def test_it_sees_where_a_shape_moves(engine: Engine, way: tuple[int, int], name: str) -> None:
    clip = moving("circle", "red", way)
    answers = {
        "What moves?": "A red circle.",
        "What stands still?": "A black square.",
        "Which way does it move?": f"{name.capitalize()}.",
        "What happens?": f"A red circle moves {name} and a black square stands still.",
    }
    assert {question: said(engine, question, clip) for question in answers} == answers


def test_a_clip_may_have_six_frames(engine: Engine) -> None:
    clip = moving("square", "blue", (14, 0), frames=6)
    assert said(engine, "Does it move left or right?", clip) == "Right."
