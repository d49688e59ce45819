"""Prompts with pictures through the whole engine, against tokens of `transformers`.

For Phi-3.5-vision, which `transformers` lacks, the tokens are those of a reference of its parts.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from quire import (
    AsyncEngine,
    BeamSearchParams,
    Engine,
    MediaError,
    OptionError,
    PromptError,
    RequestOutput,
    SamplingParams,
)
from quire.engine.media_inputs import _Kept
from quire.errors import MemoryBudgetError
from quire.multimodal.image import ImageFeatureData, ImagePixelData
from quire.multimodal.qwen2_vl import Patches
from tests.engine.vision_models import PROMPTS, Cases

GREEDY = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True)
FEW = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)


def tokens(engine: Engine, prompts: Any, params: SamplingParams = GREEDY) -> list[list[int]]:
    outputs = engine.generate(prompts, params, use_tqdm=False)
    return [output.outputs[0].token_ids for output in outputs]


def image_token(engine: Engine) -> int:
    media = engine._running.media
    assert media is not None
    return media.spec.kinds["image"].token


def check(engine: Engine) -> None:
    engine._running.replicas[0].scheduler.check_integrity()


@pytest.fixture(scope="module", params=PROMPTS)
def seeing(request: pytest.FixtureRequest) -> Iterator[tuple[Engine, Cases]]:
    """An engine that cuts prompts within pictures: steps are shorter than most of them."""
    cases = Cases(request.param)
    tokens = 512 if request.param == "phi3_v" else 24
    sizes = {"max_num_batched_tokens": tokens, "max_num_seqs": 8, "page_size": 8}
    with Engine(cases.folder, **cases.options, **sizes) as engine:
        yield engine, cases


@pytest.fixture(scope="module")
def llava() -> Iterator[tuple[Engine, Cases]]:
    cases = Cases("llava")
    with Engine(cases.folder, **cases.options, limit_mm_per_prompt={"image": 3}) as engine:
        yield engine, cases


def test_tokens_of_a_mixed_batch_cold_and_cached(seeing: tuple[Engine, Cases]) -> None:
    engine, cases = seeing
    engine.reset_prefix_cache()
    for _ in range(2):
        assert tokens(engine, cases.prompts()) == cases.greedy()
        check(engine)
    again = engine.generate(cases.prompts(), FEW, use_tqdm=False)
    assert all((output.num_cached_tokens or 0) > 0 for output in again)


def test_tokens_of_each_prompt_alone(seeing: tuple[Engine, Cases]) -> None:
    engine, cases = seeing
    for prompt, expected in zip(cases.prompts(), cases.greedy(), strict=True):
        engine.reset_prefix_cache()
        assert tokens(engine, prompt) == [expected]


def test_whole_prompts_in_one_step(llava: tuple[Engine, Cases]) -> None:
    engine, cases = llava
    assert tokens(engine, cases.prompts()) == cases.greedy()


def test_a_repeated_picture_is_encoded_once(llava: tuple[Engine, Cases]) -> None:
    engine, cases = llava
    features = engine._running.replicas[0].features
    prompt = cases.prompt("one")
    tokens(engine, prompt, FEW)
    engine.reset_prefix_cache()
    queried, hits = features.queried, features.hits
    tokens(engine, [prompt] * 3, FEW)
    assert features.queried - queried >= 1
    assert features.hits - hits == features.queried - queried


def test_another_picture_shares_no_page_behind_it(llava: tuple[Engine, Cases]) -> None:
    engine, cases = llava
    engine.reset_prefix_cache()
    first = cases.prompt("one")
    other = {**first, "multi_modal_data": {"image": cases.picture("tall")}}
    tokens(engine, first, FEW)
    [output] = engine.generate(other, FEW, use_tqdm=False)
    page = engine._running.replicas[0].pool.page_size
    before = first["prompt_token_ids"].index(image_token(engine))
    assert output.num_cached_tokens <= before // page * page


def test_one_placeholder_or_all_of_them(seeing: tuple[Engine, Cases]) -> None:
    engine, cases = seeing
    prompt = cases.prompt("two")
    token, short = image_token(engine), []
    counts = [m.num_tokens for m in engine._running.prompts.read_one(prompt).media]
    ids, left = prompt["prompt_token_ids"], list(counts)
    index = 0
    while index < len(ids):
        short.append(ids[index])
        index += left.pop(0) if ids[index] == token else 1
    assert short.count(token) == 2
    brief = {**prompt, "prompt_token_ids": short}
    assert tokens(engine, brief) == [cases.greedy()[cases.names.index("two")]]


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_few_rows_for_features(name: str) -> None:
    """Pictures take turns where there is room for one prompt's features only."""
    cases = Cases(name)
    sizes = {"max_num_batched_tokens": 24, "max_num_seqs": 8, "page_size": 8}
    sizes |= {"mm_encoder_cache_gb": 1e-9, "max_model_len": 192}
    with Engine(cases.folder, **cases.options, **sizes) as engine:
        assert engine._running.replicas[0].features.num_rows < 256
        pictures = [name for name in cases.names if name != "text"]
        alone = [cases.prompt(name) for name in pictures] * 3
        expected = [cases.greedy()[cases.names.index(name)] for name in pictures] * 3
        assert tokens(engine, alone) == expected
        check(engine)


def test_preempted_requests_see_their_pictures_again() -> None:
    cases = Cases("qwen2_vl")
    sizes = {"max_num_batched_tokens": 24, "page_size": 8, "max_model_len": 128}
    pool = {"kv_cache_memory_bytes": 100_000, "enable_prefix_caching": False}
    with Engine(cases.folder, **cases.options, **sizes, **pool) as engine:
        assert tokens(engine, cases.prompts() * 2) == cases.greedy() * 2
        assert engine.stats().num_preemptions > 0
        check(engine)


def test_pixels_and_features_as_arrays() -> None:
    cases = Cases("llava")
    ids = cases.prompt("one")["prompt_token_ids"]
    expected = [cases.greedy()[cases.names.index("one")]]
    pixels = cases.array("wide/pixels")
    old = {"image_token_id": max(set(ids), key=ids.count), "image_feature_size": 25}
    with Engine(
        cases.folder,
        **cases.options,
        image_input_type="pixel_values",
        image_input_shape="1,3,35,35",
        **old,
    ) as engine:
        for image in (pixels, pixels[None], cases.picture("wide")):
            data = ImagePixelData(image)
            assert tokens(engine, {"prompt_token_ids": ids, "multi_modal_data": data}) == expected
        small, states = (
            ImagePixelData(np.zeros((3, 30, 30))),
            ImageFeatureData(np.zeros((1, 25, 32))),
        )
        with pytest.raises(PromptError, match=r"\[3, 30, 30\].*\[1, 3, 35, 35\]"):
            engine.generate({"prompt_token_ids": ids, "multi_modal_data": small})
        with pytest.raises(PromptError, match="ImageFeatureData"):
            engine.generate({"prompt_token_ids": ids, "multi_modal_data": states})


def test_what_the_tower_made_of_a_picture(llava: tuple[Engine, Cases]) -> None:
    cases = Cases("llava")
    states = cases.array("states")[-2, 1:]  # of `wide`
    ids = cases.prompt("one")["prompt_token_ids"]
    with Engine(cases.folder, **cases.options, image_input_type="image_features") as engine:
        prompts = [
            {"prompt_token_ids": ids, "multi_modal_data": ImageFeatureData(array)}
            for array in (states, states[None])
        ]
        assert tokens(engine, prompts) == [cases.greedy()[cases.names.index("one")]] * 2
        with pytest.raises(PromptError, match="takes ImageFeatureData alone"):
            engine.generate(cases.prompt("one"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"image": []}, "1 image placeholders .* for 0 pictures"),
        ({"image": ["wide"] * 2}, "1 image placeholders .* for 2 pictures.* 50 in all"),
        ({"image": ["wide"] * 4}, "4 pictures, and limit_mm_per_prompt allows 3"),
        ({"video": "wide"}, "'video'"),
        ("wide", "multi_modal_data is a str"),
    ],
)
def test_wrong_numbers_of_pictures(llava: tuple[Engine, Cases], data: Any, message: str) -> None:
    engine, cases = llava
    if isinstance(data, dict):
        data = {
            kind: [cases.picture(name) for name in names] if isinstance(names, list) else names
            for kind, names in data.items()
        }
    text = {"prompt": "USER: <image>\nWhat is in the picture? ASSISTANT:"}
    with pytest.raises(PromptError, match=message):
        engine.generate({**text, "multi_modal_data": data})


def test_broken_pictures_and_settings(llava: tuple[Engine, Cases]) -> None:
    engine, cases = llava
    text = {"prompt": "<image>"}
    with pytest.raises(MediaError, match="no picture that can be read"):
        engine.generate({**text, "multi_modal_data": {"image": b"GIF89a, but no more"}})
    with pytest.raises(MediaError, match=r"shape \(4, 4\)"):
        engine.generate({**text, "multi_modal_data": {"image": np.zeros((4, 4))}})
    whole = {**text, "multi_modal_data": {"image": cases.picture("wide")}}
    with pytest.raises(MediaError, match="allowed are: none for this model"):
        engine.generate({**whole, "mm_processor_kwargs": {"max_pixels": 9}})


def test_settings_of_the_processor() -> None:
    cases = Cases("qwen2_vl")
    picture = {"image": Image.new("RGB", (64, 64), "red")}
    prompt = {"prompt": "<|vision_start|><|image_pad|><|vision_end|>", "multi_modal_data": picture}
    with Engine(cases.folder, mm_processor_kwargs={"max_pixels": 512}) as engine:
        [few] = engine.generate(prompt, FEW, use_tqdm=False)
        settings = {"mm_processor_kwargs": {"max_pixels": 1024}}
        [many] = engine.generate({**prompt, **settings}, FEW, use_tqdm=False)
        assert len(few.prompt_token_ids or ()) < len(many.prompt_token_ids or ())
        with pytest.raises(MediaError, match="max_pixels=True must be 1 or more"):
            engine.generate({**prompt, "mm_processor_kwargs": {"max_pixels": True}})
    with pytest.raises(OptionError, match="'crop'"):
        Engine(cases.folder, mm_processor_kwargs={"crop": 1})


def test_more_pictures_than_there_is_room_for() -> None:
    cases = Cases("qwen2_vl")
    small: dict[str, Any] = {"mm_encoder_cache_gb": 1e-9, "max_model_len": 128}
    small |= {"limit_mm_per_prompt": {"image": 20}}
    ids = cases.prompt("one")["prompt_token_ids"]
    token = max(set(ids), key=ids.count)
    pictures = [Image.new("RGB", (16, 16), (i, 0, 0)) for i in range(20)]
    with Engine(cases.folder, **cases.options, **small) as engine:
        with pytest.raises(MemoryBudgetError, match="mm_encoder_cache_gb"):
            engine.generate(
                {"prompt_token_ids": [token, 1] * 20, "multi_modal_data": {"image": pictures}}
            )
        assert tokens(engine, cases.prompt("one"))[0] == cases.greedy()[cases.names.index("one")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_token_id": 3}, "image_token_id=3 is not the model's"),
        ({"image_feature_size": 576}, "up to 25"),
        ({"limit_mm_per_prompt": {"picture": 1}}, "'picture'"),
        ({"limit_mm_per_prompt": {"image": -1}}, "-1"),
        ({"mm_encoder_cache_gb": 0.0}, "mm_encoder_cache_gb=0.0"),
        ({"image_input_shape": "1,3,336,336"}, "this model takes 1,3,35,35"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Engine(Cases("llava").folder, **options)


def test_beam_search_with_a_picture(llava: tuple[Engine, Cases]) -> None:
    engine, cases = llava
    params = BeamSearchParams(beam_width=1, max_tokens=8, ignore_eos=True)
    [output] = engine.beam_search([cases.prompt("one")], params)
    assert output.outputs[0].token_ids == cases.greedy()[cases.names.index("one")][:8]


def test_pictures_through_the_async_engine() -> None:
    cases = Cases("llava")
    asyncio.run(asyncio.wait_for(_ask_at_once(cases), 120))


async def _last(outputs: AsyncGenerator[RequestOutput, None]) -> RequestOutput:
    return [output async for output in outputs][-1]


async def _ask_at_once(cases: Cases) -> None:
    expected = cases.greedy()[cases.names.index("one")]
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "image_pil", "image_pil": cases.picture("wide")},
                {"type": "text", "text": "What is in the picture?"},
            ],
        }
    ]
    async with AsyncEngine(cases.folder, **cases.options) as engine:
        assert engine.modalities == {"text", "image"}

        prompt = cases.prompt("one")
        outputs = await asyncio.gather(*(_last(engine.generate(prompt, GREEDY)) for _ in range(3)))
        assert [output.outputs[0].token_ids for output in outputs] == [expected] * 3
        asked = await engine.chat_prompt(messages)
        answers = [
            await _last(engine.chat(messages, FEW)),
            await _last(engine.generate(asked, FEW)),
        ]
        assert answers[0].prompt_token_ids == answers[1].prompt_token_ids
        assert answers[0].outputs[0].token_ids == answers[1].outputs[0].token_ids
        broken = {"prompt": "<image>", "multi_modal_data": {"image": b"no picture"}}
        with pytest.raises(MediaError, match="no picture that can be read"):
            await _last(engine.generate(broken, FEW))
        search = BeamSearchParams(beam_width=1, max_tokens=8, ignore_eos=True)
        found = await engine.beam_search(prompt, search)
        assert found.sequences[0].token_ids == expected[:8]


def test_a_request_cannot_ask_for_larger_pictures_than_were_planned_for() -> None:
    cases = Cases("qwen2_vl")
    prompt = {
        "prompt": "<|vision_start|><|image_pad|><|vision_end|>",
        "multi_modal_data": {"image": Image.new("RGB", (520, 520))},
    }
    with Engine(cases.folder, mm_processor_kwargs={"max_pixels": 512}) as engine:
        for larger in (300_000, 10**12):
            settings = {"min_pixels": larger, "max_pixels": larger}
            with pytest.raises(PromptError, match="features, and this engine takes"):
                engine.generate({**prompt, "mm_processor_kwargs": settings})
        assert len(tokens(engine, prompt, FEW)[0]) == 4


def test_what_was_prepared_is_kept_up_to_a_size() -> None:
    kept = _Kept(100)
    kept.put(b"a", np.zeros(60, np.int8))
    kept.put(b"b", np.zeros(30, np.int8))
    assert kept.get(b"a") is not None
    kept.put(b"c", np.zeros(20, np.int8))
    assert kept.get(b"b") is None
    assert kept.get(b"a") is not None
    levels = np.zeros(3, np.int8)
    kept.put(b"d", Patches(np.zeros((2, 97), np.int8), levels, levels, (1, 1, 2), 2))
    assert [kept.get(name) for name in (b"a", b"c", b"d")] == [None] * 3


def test_nothing_compiles_after_the_start(llava: tuple[Engine, Cases]) -> None:
    engine, cases = llava
    assert engine.wait_until_ready(240)
    compiled = engine.stats().programs_compiled
    engine.reset_prefix_cache()
    with engine._lock:
        engine._running.replicas[0].features.clear()
    tokens(engine, [*cases.prompts(), cases.prompt("one")], FEW)
    assert engine.stats().programs_compiled == compiled
