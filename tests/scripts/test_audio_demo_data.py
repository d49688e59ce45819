"""What the audio demo is trained on: made from a seed, right, and within what the tower hears."""

import importlib
import re
import sys
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from quire.multimodal.log_mel import mel_filters

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
tones, kinds, dialogues, words = (
    importlib.import_module(f"scripts.{name}")
    for name in ("audio_demo.tones", "audio_demo.kinds", "audio_demo.dialogues", "media_demo.words")
)
Sound = tones.Sound


def made(kind: str, number: int, count: int) -> list[tuple[Any, Any]]:
    """Questions of a kind with the sounds that they are about."""
    rng, pairs = Random(kind), []
    while len(pairs) < count:
        sounds = dialogues.random_sounds(rng, number)
        if kinds.KINDS[number][kind].fits(sounds):
            pairs.append((kinds.KINDS[number][kind].make(rng, sounds), sounds))
    return pairs


def loud(samples: np.ndarray) -> np.ndarray:
    """Which hundredths of a second are within 30 dB of the loudest."""
    size = tones.RATE // 100
    energy = np.square(samples[: len(samples) // size * size].reshape(-1, size)).mean(1)
    return energy > energy.max() * 1e-3


def test_sounds_depend_on_the_seed_alone() -> None:
    sound = Sound((300.0, 1200.0))
    first, again, other = (tones.play(Random(seed), sound) for seed in (1, 1, 2))
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


def test_sounds_are_within_what_is_heard() -> None:
    rng = Random(5)
    sounds = [tones.play(rng, tones.any_sound(rng)) for _ in range(200)]
    assert all(sound.dtype == np.float32 and np.abs(sound).max() <= 1 for sound in sounds)
    seconds = [len(sound) / tones.RATE for sound in sounds]
    assert max(seconds) <= tones.SECONDS
    assert min(seconds) < 0.6


def test_all_tones_of_a_sound_end_before_it() -> None:
    """The silence behind the last tone is what was cut, if anything was."""
    rng = Random(6)
    for _ in range(200):
        sound = tones.any_sound(rng)
        lengths, pauses = tones.lengths(rng, sound)
        assert sum(lengths) + sum(pauses) + 0.4 < tones.SECONDS
        assert all(length > 0.03 for length in lengths)


@pytest.mark.parametrize("hertz", [120.0, 440.0, 1000.0, 2900.0])
def test_a_tone_has_its_frequency(hertz: float) -> None:
    """But for its glide, which is at most 6 %."""
    rng = Random(hertz)
    for _ in range(20):
        spectrum = np.abs(np.fft.rfft(tones.tone(rng, hertz, 1.0)))
        assert abs(int(spectrum[: int(1.5 * hertz)].argmax()) - hertz) <= 0.07 * hertz


def test_pauses_part_tones() -> None:
    """As many stretches are loud as there are tones, in sounds that neither fade nor are joined."""
    rng, right = Random(7), 0
    for _ in range(100):
        sound = Sound((300.0,) * rng.randint(1, 5))
        heard = loud(tones.play(rng, sound))
        right += int((np.diff(heard.astype(int), prepend=0) == 1).sum()) == sound.number
    assert right >= 75


def test_pitches_are_told_apart_by_the_spectrogram() -> None:
    bands = mel_filters(64, 201, tones.RATE)
    low, high = tones.HERTZ["low"][1], tones.HERTZ["high"][0]
    peaks = [int(bands[:, round(hertz / 40)].argmax()) for hertz in (low, high)]
    assert peaks[1] - peaks[0] >= 4


@pytest.mark.parametrize("number", [0, 1, 2])
def test_training_has_every_kind_of_question(number: int) -> None:
    rng = Random(number)
    made = [
        dialogues.training_dialogue(rng, dialogues.random_sounds(rng, number)) for _ in range(600)
    ]
    assert {dialogue.kind for dialogue in made} == kinds.KINDS[number].keys()
    for dialogue in made:
        assert len(dialogue.media) == number == dialogue.prompt.count(dialogues.SOUND)
        assert dialogue.prompt.endswith("<|im_start|>assistant\n")
        assert not any(dialogues.SOUND in text for text, written in dialogue.segments if written)


def number_in(text: str) -> int:
    """That a text names."""
    (word,) = re.findall(r"\b(?:none|no|one|two|three|four|five)\b", text.lower())
    return 0 if word == "none" else words.NUMBERS.index(word)


def test_counts() -> None:
    for turn, (sound,) in made("count", 1, 200):
        assert number_in(turn.answer) == len(sound.hertz)
    for turn, (sound,) in made("count_pitch", 1, 200):
        high = sum(hertz > 600 for hertz in sound.hertz)
        assert number_in(turn.answer) == (high if "high" in turn.question else sound.number - high)
    for turn, sounds in made("nth", 2, 200):
        sound = sounds["second" in turn.question]
        assert number_in(turn.answer) == sound.number


def test_descriptions() -> None:
    described = {
        (): "No tone.",
        (440.0,): "One tone: low.",
        (440.0, 880.0): "Two tones: low, high.",
        (2000.0, 880.0, 200.0): "Three tones: high, high, low.",
    }
    make = kinds.KINDS[1]["describe"].make
    assert {hertz: make(Random(0), [Sound(hertz)]).answer for hertz in described} == described


def test_pitches_of_places() -> None:
    for turn, (sound,) in made("pitch", 1, 300):
        places = {name: i for i, name in enumerate(words.ORDINALS)}
        named = [places[word] for word in re.findall(r"\w+", turn.question) if word in places]
        place = named[0] if named else -1
        if place >= sound.number or not sound.number:
            assert turn.answer == f"There is no {words.ORDINALS[place]} tone."
        else:
            assert turn.answer == ("High." if sound.hertz[place] > 600 else "Low.")


@pytest.mark.parametrize(("kind", "number"), [("higher", 1), ("highest", 1), ("higher_sound", 2)])
def test_what_is_higher(kind: str, number: int) -> None:
    answers = set()
    for turn, sounds in made(kind, number, 300):
        hertz = sounds[0].hertz if number == 1 else [max(sound.hertz) for sound in sounds]
        best = min(hertz) if "lowe" in turn.question else max(hertz)
        assert turn.answer == f"The {words.ORDINALS[hertz.index(best)]}."
        answers.add(turn.answer)
    assert len(answers) == (5 if kind == "highest" else 2)


def test_steps() -> None:
    for turn, (sound,) in made("step", 1, 100):
        first, second = sound.hertz
        assert turn.answer == ("Up." if second > first else "Down.")


def test_comparisons_of_counts() -> None:
    for turn, (first, second) in made("more", 2, 300):
        fewer = "fewer" in turn.question
        counts = [-sound.number if fewer else sound.number for sound in (first, second)]
        texts = ("Neither.", "The second.", "The first.")
        assert turn.answer == texts[int(np.sign(counts[1] - counts[0])) % 3]
    for turn, (first, second) in made("same_count", 2, 300):
        assert turn.answer.startswith("Yes") == (first.number == second.number)


@pytest.mark.parametrize("kind", ["is_count", "is_pitch"])
def test_yes_and_no_are_about_as_frequent(kind: str) -> None:
    answers = [turn.answer for turn, _ in made(kind, 1, 400)]
    assert 0.3 < sum(answer == "Yes." for answer in answers) / 400 < 0.65


def part(kind: str, text: str = "") -> dict[str, str]:
    return {"type": kind, "text": text} if text else {"type": kind}


def test_the_template_makes_the_same_text() -> None:
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models" / "audio_demo")
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [part("text", "What is this?"), part("audio")]},
        {"role": "assistant", "content": "No tone."},
        {"role": "user", "content": [part("audio"), part("text", "Which has more tones?")]},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    turns = [
        words.Turn(f"{dialogues.played(1, 1)}What is this?", "No tone."),
        words.Turn(f"{dialogues.played(2, 1)}Which has more tones?", "Neither."),
    ]
    segments = dialogues.render(turns, "Be brief.")
    assert text == "".join(segment for segment, _ in segments[:-2])
    assert [written for _, written in segments] == [False, True, True] * 2


@pytest.mark.parametrize("kind", dialogues.HELD_OUT_KINDS)
def test_held_out_questions(kind: str) -> None:
    questions, again = (list(dialogues.held_out(kind, 6)) for _ in range(2))
    for question, same in zip(questions, again, strict=True):
        assert (question.prompt, question.answer) == (same.prompt, same.answer)
        assert question.prompt.count(dialogues.SOUND) == len(question.sounds)
        pairs = zip(question.sounds, same.sounds, strict=True)
        assert all(one.tobytes() == two.tobytes() for one, two in pairs)
        assert question.answer.endswith((".", "!"))
