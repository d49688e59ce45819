"""What the vision demo is trained on: made from a seed, right, and whole in what the crop keeps."""

import importlib
import re
import sys
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.scripts.drawn import nearest_colour, shapes
from transformers import AutoTokenizer

from quire.multimodal.clip import ClipImages

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
drawings, kinds, dialogues = (
    importlib.import_module(f"scripts.vision_demo.{name}")
    for name in ("drawings", "kinds", "dialogues")
)
PLAIN = {
    "size": {"shortest_edge": 48},
    "crop_size": {"height": 48, "width": 48},
    "do_rescale": False,
    "do_normalize": False,
}


def seen(picture: Image.Image) -> np.ndarray:
    """What the tower sees of a picture, float32 [48, 48, 3] in 0..255."""
    return ClipImages.from_hf(PLAIN, patch_size=8)(picture).transpose(1, 2, 0)


def test_drawings_depend_on_the_seed_alone() -> None:
    first, again, other = (drawings.draw(Random(s), "star", "red") for s in (1, 1, 2))
    assert first.tobytes() == again.tobytes()
    assert first.size != other.size or first.tobytes() != other.tobytes()


@pytest.mark.parametrize("shape", shapes.SHAPES)
def test_the_crop_keeps_all_of_a_shape(shape: str) -> None:
    """Black is drawn on light grounds, so it can be counted in the picture and in the crop."""
    rng = Random(shape)
    for _ in range(25):
        picture = drawings.draw(rng, shape, "black")
        short = min(picture.size)
        left, top = ((side - short) // 2 for side in picture.size)
        whole = np.asarray(picture).sum(-1) < 240
        middle = whole[top : top + short, left : left + short]
        assert whole.sum() == middle.sum() > 0.01 * short * short


def test_pictures_have_many_sizes_and_aspects() -> None:
    rng = Random(4)
    sizes = np.array([drawings.draw(rng, "circle", "blue").size for _ in range(200)])
    assert {(w > h) - (w < h) for w, h in sizes.tolist()} == {-1, 0, 1}
    assert sizes.min() < 60
    assert sizes.min(axis=1).max() > 250
    assert 1.8 < (sizes.max(axis=1) / sizes.min(axis=1)).max() <= 2.05


@pytest.mark.parametrize("colour", shapes.COLOURS)
def test_the_tower_sees_a_shape_in_its_colour(colour: str) -> None:
    """A square without noise: what differs most from the ground is of its colour."""
    rng = Random(colour)
    pictures = [drawings.draw(rng, "square", colour) for _ in range(40)]
    names = []
    for picture in pictures:
        pixels = seen(picture).reshape(-1, 3)
        far = np.abs(pixels - np.median(pixels[-48:], axis=0)).sum(1)
        names.append(nearest_colour(np.median(pixels[far > 0.8 * far.max()], axis=0)))
    assert names.count(colour) >= 36


def training(pictures: int, count: int) -> list[Any]:
    rng = Random(f"{pictures} pictures")
    return [dialogues.training_dialogue(rng, pictures) for _ in range(count)]


def made(kind: str, pictures: int, count: int) -> list[tuple[Any, Any]]:
    """Questions of a kind with the things they are about."""
    rng = Random(kind)
    shown = [dialogues.shown(rng, pictures) for _ in range(count)]
    return [(dialogues.turn(rng, kind, things), things) for things in shown]


def names_in(text: str) -> set[str]:
    """The shapes and colours that a text names."""
    return {*shapes.SHAPES, *shapes.COLOURS} & set(re.findall(r"\w+", text.lower()))


@pytest.mark.parametrize("pictures", [0, 1, 2])
def test_every_picture_has_its_place_in_the_text(pictures: int) -> None:
    for dialogue in training(pictures, 300):
        assert len(dialogue.things) == pictures
        assert dialogue.prompt.count(dialogues.IMAGE) == pictures
        assert dialogue.prompt.endswith(dialogues.ASSISTANT)
        assert not any(dialogues.IMAGE in text for text, written in dialogue.segments if written)


@pytest.mark.parametrize("pictures", [0, 1, 2])
def test_training_has_every_kind_of_question(pictures: int) -> None:
    asked = {dialogue.kind for dialogue in training(pictures, 500)}
    assert asked == kinds.KINDS[pictures].keys()


@pytest.mark.parametrize(
    ("kind", "pictures"),
    [(kind, n) for n in (1, 2) for kind in kinds.KINDS[n] if kind not in ("talk", "count")],
)
def test_answers_name_only_what_is_there(kind: str, pictures: int) -> None:
    for turn, things in made(kind, pictures, 300):
        there = {name for thing in things for name in (thing.shape, thing.colour)}
        assert names_in(turn.answer) <= there
        if turn.answer.startswith("Yes"):
            assert names_in(turn.question) <= there


@pytest.mark.parametrize("kind", ["is_shape", "is_colour", "is_thing", "same_colour", "same_shape"])
def test_yes_and_no_are_about_as_frequent(kind: str) -> None:
    pictures = 2 if kind.startswith("same") else 1
    answers = [turn.answer for turn, _ in made(kind, pictures, 400)]
    assert 0.35 < sum(answer.startswith("Yes") for answer in answers) / 400 < 0.65


def test_no_names_what_was_not_asked_for() -> None:
    for turn, things in made("is_thing", 1, 300):
        assert (things[0].name in turn.question.lower()) == (turn.answer == "Yes.")


def test_which_picture() -> None:
    answers = []
    for turn, things in made("which", 2, 600):
        names = names_in(turn.question)
        first, second = (names <= {thing.shape, thing.colour} for thing in things)
        texts = ("Neither.", "The second.", "The first.", "Both.")
        assert turn.answer == texts[2 * first + second]
        answers.append(turn.answer)
    assert min(answers.count(text) for text in set(answers)) > 30


def test_what_differs() -> None:
    answers = {}
    for turn, (first, second) in made("differ", 2, 300):
        pair = first.shape == second.shape, first.colour == second.colour
        assert answers.setdefault(pair, turn.answer) == turn.answer
    assert answers == {
        (True, True): "Nothing.",
        (True, False): "The colour.",
        (False, True): "The shape.",
        (False, False): "The shape and the colour.",
    }


def part(kind: str, text: str = "") -> dict[str, str]:
    return {"type": kind, "text": text} if text else {"type": kind}


def test_the_template_makes_the_same_text() -> None:
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models" / "vision_demo")
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [part("text", "What is this?"), part("image"), part("image")]},
        {"role": "assistant", "content": "A star."},
        {"role": "user", "content": "What differs?"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    turns = [("<image>\n<image>\nWhat is this?", "A star."), ("What differs?", "Nothing.")]
    segments = dialogues.render(turns, "Be brief.")
    assert text == "".join(segment for segment, _ in segments[:-1])
    assert [written for _, written in segments] == [False, True, False, True]


@pytest.mark.parametrize("kind", dialogues.HELD_OUT_KINDS)
def test_held_out_questions(kind: str) -> None:
    questions, again = (dialogues.held_out(kind, 6) for _ in range(2))
    for question, same in zip(questions, again, strict=True):
        assert (question.prompt, question.answer) == (same.prompt, same.answer)
        assert question.prompt.count(dialogues.IMAGE) == len(question.pictures)
        pairs = zip(question.pictures, same.pictures, strict=True)
        assert all(one.tobytes() == two.tobytes() for one, two in pairs)
        assert question.answer.endswith((".", "!"))
        assert question.answer not in question.prompt.rpartition("USER:")[2]
