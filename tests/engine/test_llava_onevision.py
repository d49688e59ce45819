"""Tiles and videos through the whole engine, against tokens of `transformers`."""

from collections.abc import Iterator
from typing import Any

import pytest

from quire import Engine, SamplingParams
from tests.models.llava_onevision_model import EXPECTED, FOLDER, picture

GREEDY = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True)
PROMPTS = ("text", "one", "two", "video", "mixed")


@pytest.fixture(scope="module")
def seeing() -> Iterator[Engine]:
    """An engine that cuts prompts within media: steps are shorter than most of them."""
    sizes = {"max_num_batched_tokens": 32, "max_num_seqs": 8, "page_size": 8}
    with Engine(FOLDER, dtype="float32", max_model_len=512, enforce_eager=True, **sizes) as engine:
        yield engine


def media(name: str) -> dict[str, Any]:
    """Those of a prompt, by kind."""
    names = EXPECTED[f"{name}/media"].tolist()
    videos = [EXPECTED[f"{one}/frames"] for one in names if f"{one}/frames" in EXPECTED]
    pictures = [picture(one) for one in names if f"{one}/picture" in EXPECTED]
    return {"image": pictures, "video": videos}


def test_tokens_of_a_mixed_batch_cold_and_cached(seeing: Engine) -> None:
    prompts = [
        {"prompt_token_ids": EXPECTED[f"{name}/prompt"].tolist(), "multi_modal_data": media(name)}
        for name in PROMPTS
    ]
    expected = [EXPECTED[f"{name}/greedy"].tolist() for name in PROMPTS]
    for _ in range(2):
        outputs = seeing.generate(prompts, GREEDY, use_tqdm=False)
        assert [output.outputs[0].token_ids for output in outputs] == expected
        seeing._running.scheduler.check_integrity()


def test_placeholders_in_text_become_as_many_as_there_are_features(seeing: Engine) -> None:
    few = SamplingParams(temperature=0, max_tokens=2)
    prompts = [
        {"prompt": str(EXPECTED[f"{name}/text"]), "multi_modal_data": media(name)}
        for name in PROMPTS
    ]
    outputs = seeing.generate(prompts, few, use_tqdm=False)
    for name, output in zip(PROMPTS, outputs, strict=True):
        assert output.prompt_token_ids == EXPECTED[f"{name}/prompt"].tolist()
