"""Prompts with sounds through the whole engine, against tokens of `transformers`."""

import asyncio
import io
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from quire import AsyncEngine, Engine, MediaError, OptionError, PromptError, SamplingParams
from tests.engine.vision_models import RATE, SoundCases

CASES = SoundCases()
GREEDY = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True)
FEW = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
EXPECTED = CASES.greedy()
MARKER = "<|audio_bos|><|AUDIO|><|audio_eos|>"


def tokens(engine: Engine, prompts: Any, params: SamplingParams = GREEDY) -> list[list[int]]:
    outputs = engine.generate(prompts, params, use_tqdm=False)
    return [output.outputs[0].token_ids for output in outputs]


@pytest.fixture(scope="module")
def hearing() -> Iterator[Engine]:
    """An engine that cuts prompts within sounds: steps are shorter than most of them."""
    sizes = {"max_num_batched_tokens": 24, "max_num_seqs": 8, "page_size": 8}
    limits = {"limit_mm_per_prompt": {"audio": 3}}
    with Engine(CASES.folder, **CASES.options, **sizes, **limits) as engine:
        yield engine


def wav(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="WAV")
    return file.getvalue()


def test_tokens_of_a_mixed_batch_cold_and_cached(hearing: Engine) -> None:
    hearing.reset_prefix_cache()
    for _ in range(2):
        assert tokens(hearing, CASES.prompts()) == EXPECTED
        hearing._running.replicas[0].scheduler.check_integrity()
    again = hearing.generate(CASES.prompts()[1:], FEW, use_tqdm=False)
    assert all((output.num_cached_tokens or 0) > 0 for output in again)


def test_a_repeated_sound_is_encoded_once(hearing: Engine) -> None:
    features = hearing._running.replicas[0].features
    tokens(hearing, CASES.prompt("one"), FEW)
    hearing.reset_prefix_cache()
    queried, hits = features.queried, features.hits
    tokens(hearing, [CASES.prompt("one")] * 3, FEW)
    assert features.hits - hits == features.queried - queried > 0


def test_another_sound_gives_another_answer(hearing: Engine) -> None:
    prompt = CASES.prompt("one")
    count = prompt["prompt_token_ids"].count(127)
    other = np.random.default_rng(0).normal(0, 3000, count * 640).astype(np.int16)
    changed = {**prompt, "multi_modal_data": {"audio": (other, RATE)}}
    assert tokens(hearing, changed)[0] != CASES.tokens("one")


def test_every_form_of_a_sound(hearing: Engine, tmp_path: Path) -> None:
    prompt = {"prompt_token_ids": CASES.prompt("one")["prompt_token_ids"]}
    samples = CASES.samples("short")
    floats = samples.astype(np.float32) / 32768
    path = tmp_path / "short.wav"
    path.write_bytes(wav(samples))
    forms: list[Any] = [
        (samples, RATE),
        [(samples, RATE)],
        (floats, float(RATE)),
        (np.stack([floats, floats]), RATE),
        floats,
        floats.tolist(),
        wav(samples),
        path,
        str(path),
    ]
    prompts = [{**prompt, "multi_modal_data": {"audio": form}} for form in forms]
    assert tokens(hearing, prompts) == [CASES.tokens("one")] * len(forms)


@pytest.mark.parametrize("rate", [8000, 44100, 192000])
def test_sounds_of_other_rates_have_as_many_features(hearing: Engine, rate: int) -> None:
    """As many as one of the same length at the rate of the model."""
    tone = np.sin(np.arange(rate // 2) * 2 * np.pi * 440 / rate).astype(np.float32)
    prompt = {"prompt": MARKER, "multi_modal_data": {"audio": (tone, rate)}}
    [output] = hearing.generate(prompt, FEW, use_tqdm=False)
    assert (output.prompt_token_ids or []).count(127) == 12


def test_what_is_longer_than_the_tower_takes_is_cut(hearing: Engine) -> None:
    tone = np.sin(np.arange(3 * RATE) * 0.1)
    prompts = [
        {"prompt": MARKER, "multi_modal_data": {"audio": (tone[:length], RATE)}}
        for length in (RATE, 3 * RATE)
    ]
    whole, longer = hearing.generate(prompts, FEW, use_tqdm=False)
    assert (whole.prompt_token_ids or []).count(127) == 25
    assert longer.prompt_token_ids == whole.prompt_token_ids
    assert longer.outputs[0].token_ids == whole.outputs[0].token_ids


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ({"audio": []}, PromptError, "1 audio placeholders .* for 0 sounds"),
        ({"audio": [np.zeros(800)] * 2}, PromptError, "1 audio placeholders .* for 2 sounds"),
        ({"audio": [np.zeros(800)] * 4}, PromptError, "4 sounds, and limit_mm_per_prompt allows 3"),
        ({"image": Image.new("RGB", (8, 8))}, PromptError, "'image', and this model takes sounds"),
        ({"audio": np.full(800, np.nan)}, MediaError, "not finite"),
        ({"audio": np.zeros(0)}, MediaError, "no samples"),
        ({"audio": np.zeros(100)}, MediaError, "100 samples .* too short"),
        ({"audio": (np.zeros(800), 0)}, MediaError, "rate of 0"),
        ({"audio": b"no sound"}, MediaError, "no sound that can be read"),
        ({"audio": "nowhere.wav"}, MediaError, "'nowhere.wav' cannot be read"),
    ],
)
def test_what_is_refused(hearing: Engine, data: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        hearing.generate({"prompt": MARKER, "multi_modal_data": data})


def test_it_serves_on_after_refusals(hearing: Engine) -> None:
    with pytest.raises(MediaError):
        hearing.generate({"prompt": MARKER, "multi_modal_data": {"audio": wav(np.zeros(0))}})
    assert tokens(hearing, CASES.prompt("two")) == [CASES.tokens("two")]


def test_options_that_do_not_fit() -> None:
    for options, message in (
        ({"image_token_id": 3}, "image_token_id=3 is about pictures, and this model takes none"),
        ({"image_input_type": "image_features"}, "image_input_type='image_features'"),
        ({"mm_processor_kwargs": {"max_pixels": 3}}, "allowed are: none for this model"),
    ):
        with pytest.raises(OptionError, match=message):
            Engine(CASES.folder, **options)


def test_nothing_compiles_after_the_start(hearing: Engine) -> None:
    assert hearing.wait_until_ready(240)
    compiled = hearing.stats().programs_compiled
    hearing.reset_prefix_cache()
    with hearing._lock:
        hearing._running.replicas[0].features.clear()
    tokens(hearing, [*CASES.prompts(), CASES.prompt("one")], FEW)
    assert hearing.stats().programs_compiled == compiled


MESSAGES = [
    {
        "role": "user",
        "content": [
            {"type": "audio", "audio": (CASES.samples("long"), RATE)},
            {"type": "text", "text": "What is it?"},
            {"type": "audio", "audio": (CASES.samples("odd"), RATE)},
        ],
    }
]


def test_sounds_in_conversations(hearing: Engine) -> None:
    """The template numbers them; another, which shows no media, gets their markers in front."""
    [shown] = hearing.chat(MESSAGES, FEW, use_tqdm=False)
    text = hearing.get_tokenizer().decode(shown.prompt_token_ids)
    placeholders = "<|AUDIO|>" * 25, "<|AUDIO|>" * 15
    bos, eos = "<|audio_bos|>", "<|audio_eos|>"
    first, second = (f"{bos}{run}{eos}\n" for run in placeholders)
    said = f"Audio 1: {first}What is it?Audio 2: {second}<|im_end|>"
    assert text == f"<|im_start|>user\n{said}\n<|im_start|>assistant\n"
    plain = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    [before] = hearing.chat(MESSAGES, FEW, use_tqdm=False, chat_template=plain)
    text = hearing.get_tokenizer().decode(before.prompt_token_ids)
    assert text == f"{first}{second}What is it?"


async def _last(outputs: AsyncGenerator[Any, None]) -> Any:
    return [output async for output in outputs][-1]


async def _ask_at_once() -> None:
    async with AsyncEngine(CASES.folder, **CASES.options) as engine:
        assert engine.modalities == {"text", "audio"}
        asked = [_last(engine.generate(prompt, GREEDY)) for prompt in CASES.prompts()]
        outputs = await asyncio.gather(*asked)
        assert [output.outputs[0].token_ids for output in outputs] == EXPECTED
        answer = await _last(engine.chat(MESSAGES, FEW))
        assert len(answer.outputs[0].token_ids) == 4


def test_sounds_through_the_async_engine() -> None:
    asyncio.run(asyncio.wait_for(_ask_at_once(), 120))
