"""What the vision demo is trained on: made from a seed, right, and whole in what is seen."""

import importlib
import re
import sys
from pathlib import Path
from random import Random
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tests.scripts.drawn import nearest_colour, shapes
from transformers import AutoTokenizer

from quire.models import functional
from quire.models.llava_next_video import LlavaNextVideo
from quire.multimodal.clip import ClipImages

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
drawings, clips, kinds, dialogues, checkpoint, pool, train = (
    importlib.import_module(f"scripts.vision_demo.{name}")
    for name in ("drawings", "clips", "kinds", "dialogues", "checkpoint", "pool", "train")
)
training_steps, words = (
    importlib.import_module(f"scripts.media_demo.{name}") for name in ("training", "words")
)
Thing = pool.Thing
STILL = tuple(scene for scene in kinds.KINDS if scene != kinds.CLIP)
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
def test_pictures_have_all_of_a_shape(shape: str) -> None:
    """Black is drawn on light grounds, so none of it is at the edge."""
    rng = Random(shape)
    for _ in range(25):
        black = np.asarray(drawings.draw(rng, shape, "black")).sum(-1) < 240
        edge = np.concatenate([black[0], black[-1], black[:, 0], black[:, -1]])
        assert not edge.any()
        assert black.sum() > 0.01 * min(black.shape) ** 2


def test_pictures_have_many_sizes_and_aspects() -> None:
    rng = Random(4)
    sizes = np.array([drawings.draw(rng, "circle", "blue").size for _ in range(200)])
    assert {(w > h) - (w < h) for w, h in sizes.tolist()} == {-1, 0, 1}
    assert sizes.min() < 60
    assert sizes.min(axis=1).max() > 250
    assert 1.7 < (sizes.max(axis=1) / sizes.min(axis=1)).max() <= 1.82


@pytest.mark.parametrize("colour", shapes.COLOURS)
def test_the_tower_sees_a_shape_in_its_colour(colour: str) -> None:
    """A square without noise: what differs most from the ground is of its colour."""
    rng = Random(colour)
    names = []
    for picture in [drawings.draw(rng, "square", colour) for _ in range(40)]:
        pixels = np.asarray(picture.resize((48, 48))).reshape(-1, 3).astype(np.float32)
        far = np.abs(pixels - np.median(pixels[-48:], axis=0)).sum(1)
        names.append(nearest_colour(np.median(pixels[far > 0.8 * far.max()], axis=0)))
    assert names.count(colour) >= 36


def training(scene: str, count: int) -> list[Any]:
    rng = Random(scene)
    return [
        dialogues.training_dialogue(rng, scene, dialogues.any_shown(rng, scene))
        for _ in range(count)
    ]


def made(kind: str, scene: str, count: int) -> list[tuple[Any, Any]]:
    """Questions of a kind with what they are about."""
    rng, pairs = Random(kind), []
    while len(pairs) < count:
        shown = dialogues.any_shown(rng, scene)
        if kinds.KINDS[scene][kind].fits(shown):
            pairs.append((dialogues.turn(rng, scene, kind, shown), shown))
    return pairs


def names_in(text: str) -> set[str]:
    """The shapes and colours that a text names."""
    return {*shapes.SHAPES, *shapes.COLOURS} & set(re.findall(r"\w+", text.lower()))


@pytest.mark.parametrize("scene", kinds.KINDS)
def test_every_medium_has_its_place_in_the_text(scene: str) -> None:
    number = {"nothing": 0, "pictures": 2}.get(scene, 1)
    placeholder = dialogues.VIDEO if scene == kinds.CLIP else dialogues.IMAGE
    for dialogue in training(scene, 300):
        assert len(dialogue.media) == number
        assert dialogue.prompt.count(placeholder) == number
        assert dialogue.prompt.endswith(dialogues.ASSISTANT)
        assert not any(placeholder in text for text, written in dialogue.segments if written)


@pytest.mark.parametrize("scene", kinds.KINDS)
def test_training_has_every_kind_of_question(scene: str) -> None:
    assert {dialogue.kind for dialogue in training(scene, 600)} == kinds.KINDS[scene].keys()


@pytest.mark.parametrize(
    ("kind", "scene"),
    [
        (kind, scene)
        for scene in ("picture", "pictures")
        for kind in kinds.KINDS[scene]
        if kind not in ("talk", "count")
    ],
)
def test_answers_name_only_what_is_there(kind: str, scene: str) -> None:
    for turn, things in made(kind, scene, 300):
        there = {name for thing in things for name in (thing.shape, thing.colour)}
        assert names_in(turn.answer) <= there
        if turn.answer.startswith("Yes"):
            assert names_in(turn.question) <= there


@pytest.mark.parametrize("kind", ["is_shape", "is_colour", "is_thing", "same_colour", "same_shape"])
def test_yes_and_no_are_about_as_frequent(kind: str) -> None:
    scene = "pictures" if kind.startswith("same") else "picture"
    answers = [turn.answer for turn, _ in made(kind, scene, 400)]
    assert 0.35 < sum(answer.startswith("Yes") for answer in answers) / 400 < 0.65


def test_no_names_what_was_not_asked_for() -> None:
    for turn, things in made("is_thing", "picture", 300):
        assert (things[0].name in turn.question.lower()) == (turn.answer == "Yes.")


def test_which_picture() -> None:
    answers = []
    for turn, things in made("which", "pictures", 600):
        names = names_in(turn.question)
        first, second = (names <= {thing.shape, thing.colour} for thing in things)
        texts = ("Neither.", "The second.", "The first.", "Both.")
        assert turn.answer == texts[2 * first + second]
        answers.append(turn.answer)
    assert min(answers.count(text) for text in set(answers)) > 30


def test_what_differs() -> None:
    answers = {}
    for turn, (first, second) in made("differ", "pictures", 300):
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
    assert text == "".join(segment for segment, _ in segments[:-2])
    assert [written for _, written in segments] == [False, True, True] * 2


def arrays(question: Any) -> list[np.ndarray]:
    """Pixels of all its media."""
    return [np.asarray(one) for kind in sorted(question.data) for one in question.data[kind]]


@pytest.mark.parametrize("kind", dialogues.HELD_OUT_KINDS)
def test_held_out_questions(kind: str) -> None:
    questions, again = (dialogues.held_out(kind, 6) for _ in range(2))
    for question, same in zip(questions, again, strict=True):
        assert (question.prompt, question.answer) == (same.prompt, same.answer)
        assert question.prompt.count(dialogues.IMAGE) == len(question.data.get("image", ()))
        assert question.prompt.count(dialogues.VIDEO) == len(question.data.get("video", ()))
        pairs = zip(arrays(question), arrays(same), strict=True)
        assert all((one == two).all() for one, two in pairs)
        assert question.answer.endswith((".", "!"))
        assert question.answer not in question.prompt.rpartition("USER:")[2]


def black_places(frames: np.ndarray) -> np.ndarray:
    """Row and column of the middle of what is black in each frame [T, 2]."""
    return np.array([np.argwhere(frame.sum(-1) < 240).mean(0) for frame in frames])


@pytest.mark.parametrize(
    ("direction", "row", "column"),
    [("right", 0, 1), ("left", 0, -1), ("down", 1, 0), ("up", -1, 0)],
)
def test_a_clip_moves_in_its_direction(direction: str, row: int, column: int) -> None:
    """All of it in the middle square, further with every frame, past what stands still."""
    rng = Random(direction)
    still = Thing("circle", "yellow")
    for _ in range(10):
        frames = clips.film(rng, clips.Clip(Thing("heart", "black"), still, direction))
        assert clips.FRAMES[0] <= len(frames) <= clips.FRAMES[1]
        steps = np.diff(black_places(frames), axis=0)
        along = steps @ np.array([row, column])
        assert (along > 0).all()
        assert (np.abs(steps @ np.array([column, row])) < 1).all()
        short = min(frames.shape[1:3])
        assert 0.15 * short < along.sum() < 0.8 * short
        top, left = ((side - short) // 2 for side in frames.shape[1:3])
        black = frames.sum(-1) < 240
        assert black.sum() == black[:, top : top + short, left : left + short].sum() > 0


def test_what_stands_still_is_in_all_frames_alike() -> None:
    rng = Random(3)
    for _ in range(10):
        clip = clips.Clip(Thing("square", "yellow"), Thing("star", "black"), "up")
        places = black_places(clips.film(rng, clip))
        assert np.abs(places - places[0]).max() < 0.5


def test_clips_are_of_all_kinds() -> None:
    rng = Random(8)
    made = [clips.any_clip(rng) for _ in range(300)]
    shown = [(clip.moving is not None, clip.still is not None) for clip in made]
    assert {each: shown.count(each) > 10 for each in set(shown)} == dict.fromkeys(
        [(True, True), (True, False), (False, True)], True
    )
    assert {clip.direction for clip in made if clip.moving} == set(clips.DIRECTIONS)
    assert all(clip.moving != clip.still for clip in made)


def test_answers_about_clips() -> None:
    for turn, (clip,) in made("happens", kinds.CLIP, 200):
        moves = f"{clip.moving.name} moves {clip.direction}" if clip.moving else ""
        stands = f"{clip.still.name} stands still" if clip.still else ""
        joint = " and " if moves and stands else ""
        assert turn.answer == words.sentence(moves + joint + stands)
    for kind in ("moves", "stands"):
        for turn, (clip,) in made(kind, kinds.CLIP, 200):
            thing = clip.moving if kind == "moves" else clip.still
            assert turn.answer == (words.sentence(thing.name) if thing else "Nothing.")
    for turn, (clip,) in made("does_move", kinds.CLIP, 200):
        asked = clip.moving if turn.answer == "Yes." else clip.still
        assert names_in(turn.question) <= {asked.shape, asked.colour}


@pytest.mark.parametrize("kind", ["way", "does_move_so", "this_or_that"])
def test_directions(kind: str) -> None:
    for turn, (clip,) in made(kind, kinds.CLIP, 300):
        said = set(re.findall("right|left|up|down", turn.question))
        if kind == "does_move_so":
            assert (clip.direction in said) == (turn.answer == "Yes.")
            assert turn.answer in ("Yes.", f"No, it moves {clip.direction}.")
        else:
            assert turn.answer == f"{clip.direction.capitalize()}."
            assert not said or clip.direction in said


@pytest.fixture(scope="module")
def model() -> Any:
    """With random weights."""
    graphdef = functional.abstract(LlavaNextVideo, checkpoint.CONFIG, jnp.float32)[0]
    return functional.bind(graphdef, train.first_params(jax.random.key(1)))


def encoded(model: Any, kind: str, media: list[Any]) -> np.ndarray:
    """Features of media as the engine has them."""
    encoder: Any = LlavaNextVideo.encoders(checkpoint.CONFIG)[kind]
    inputs = encoder.inputs(media, sum(map(encoder.units, media)))
    rows = sum(map(encoder.num_tokens, media))
    return np.asarray(model.encode(jax.tree.map(jnp.asarray, inputs)))[:rows]


def test_training_sees_what_the_engine_sees(model: Any) -> None:
    rng = Random(9)
    sizes = (80, 80), (90, 60), (60, 99)
    pictures = [drawings.draw(rng, "star", "red").resize(size) for size in sizes]
    tiles = [checkpoint.PICTURES(picture) for picture in pictures]
    films = [clips.film(rng, clips.any_clip(rng)) for _ in range(3)]
    frames = [checkpoint.CLIPS(film) for film in films]
    kept = jnp.array([pool.KEPT.index(each.kept) for each in tiles])
    counts = {
        checkpoint.IMAGE_ID: jnp.asarray(train.PICTURE_COUNTS)[kept],
        checkpoint.VIDEO_ID: jnp.array([len(film) * pool.FRAME_ROWS for film in films]),
    }
    stacked = np.zeros((3, clips.FRAMES[1], *frames[0].pixels.shape[1:]), np.float32)
    for target, each in zip(stacked, frames, strict=True):
        target[: len(each.pixels)] = each.pixels
    pixels = np.stack([each.pixels for each in tiles]), stacked
    squares = (np.moveaxis(unnormalized(each), 2, -1) for each in pixels)
    shown, seen = train.features(model, next(squares), kept, next(squares), counts)
    for (token, rows), kind, media in ((shown, "image", tiles), (seen, "video", frames)):
        number = int(counts[token].sum())
        expected = encoded(model, kind, media)
        assert len(expected) == number
        np.testing.assert_allclose(rows[:number], expected, rtol=0, atol=1e-3)


def unnormalized(pixels: np.ndarray) -> np.ndarray:
    """uint8 [N, P, 3, E, E] of what the processors give."""
    normalize = checkpoint.PICTURES.normalize
    mean, std = (np.array(each)[:, None, None] for each in (normalize.mean, normalize.std))
    return np.round((pixels * std + mean) * 255).astype(np.uint8)


def test_placeholders_are_repeated() -> None:
    rows = jnp.array([[5, 2, 6, 2, 7, 0], [2, 3, 4099, 0, 0, 0]])
    counts = {2: jnp.array([2, 1, 3]), 3: jnp.array([2])}
    expected = [[5, 2, 2, 6, 2, 7, 0, 0], [2, 2, 2, 3, 3, 4099, 0, 0]]
    assert training_steps.expanded(rows, counts, 8).tolist() == expected


@pytest.mark.parametrize("direction", clips.DIRECTIONS)
def test_training_turns_clips_to_their_direction(direction: str) -> None:
    rng, number = Random(direction), clips.DIRECTIONS.index(direction)
    clip = clips.Clip(Thing("heart", "black"), None, direction)
    frames = [clips.filmed_rightwards(rng, clip) for _ in range(4)]
    shape = (4, clips.FRAMES[1], 48, 48, 3)
    squares, lengths = np.full(shape, 255, np.uint8), np.array([len(each) for each in frames])
    for target, each in zip(squares, frames, strict=True):
        middle = [seen(Image.fromarray(frame)) for frame in each]
        target[: len(each)] = np.round(middle).clip(0, 255).astype(np.uint8)
    media = jnp.arange(4) * len(clips.DIRECTIONS) + number
    drawn = pool.Clips(jnp.asarray(squares), jnp.asarray(lengths), ())
    turned, counts = train.draw_clips(jax.random.key(2), drawn, media)
    for squares, count in zip(np.asarray(turned), counts.tolist(), strict=True):
        steps = np.diff(black_places(squares[:count]), axis=0).sum(0)
        axis, sign = {"right": (1, 1), "left": (1, -1), "down": (0, 1), "up": (0, -1)}[direction]
        assert sign * steps[axis] > 5
        assert abs(steps[1 - axis]) < 1.5
