"""Tiles and videos through the whole engine, against tokens of `transformers`."""

from collections.abc import Iterator
from typing import Any

import pytest

from quire import Engine, SamplingParams
from tests.models.square_models import SquareModel

GREEDY = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True)
PROMPTS = {
    "llava_onevision": ("text", "one", "two", "video", "mixed"),
    "llava_next_video": ("text", "one", "several", "video", "videos", "mixed"),
    "llava_next": ("text", "one", "several"),
}


def engine(case: SquareModel, tokens: int) -> Engine:
    """Steps of so many tokens; nothing is compiled ahead."""
    sizes = {"max_num_batched_tokens": tokens, "max_num_seqs": 8, "page_size": 8}
    return Engine(case.folder, dtype="float32", max_model_len=512, enforce_eager=True, **sizes)


@pytest.fixture(scope="module", params=PROMPTS)
def case(request: pytest.FixtureRequest) -> SquareModel:
    return SquareModel(request.param)


@pytest.fixture(scope="module")
def seeing(case: SquareModel) -> Iterator[Engine]:
    """An engine that cuts prompts within media: steps are shorter than most of them."""
    with engine(case, 32) as made:
        yield made


def prompts(case: SquareModel) -> list[dict[str, Any]]:
    """Token ids with a placeholder for each feature, and the media."""
    return [
        {
            "prompt_token_ids": case.expected[f"{name}/prompt"].tolist(),
            "multi_modal_data": {kind: media for kind, media in case.media(name).items() if media},
        }
        for name in PROMPTS[case.name]
    ]


def expected(case: SquareModel) -> list[list[int]]:
    return [case.expected[f"{name}/greedy"].tolist() for name in PROMPTS[case.name]]


def generated(engine: Engine, prompts: Any) -> list[list[int]]:
    outputs = engine.generate(prompts, GREEDY, use_tqdm=False)
    return [output.outputs[0].token_ids for output in outputs]


def test_tokens_of_a_mixed_batch_cold_and_cached(case: SquareModel, seeing: Engine) -> None:
    for _ in range(2):
        assert generated(seeing, prompts(case)) == expected(case)
        seeing._running.replicas[0].scheduler.check_integrity()


def test_placeholders_in_text_become_as_many_as_there_are_features(
    case: SquareModel, seeing: Engine
) -> None:
    few = SamplingParams(temperature=0, max_tokens=2)
    texts = [
        {**prompt, "prompt": str(case.expected[f"{name}/text"])}
        for name, prompt in zip(PROMPTS[case.name], prompts(case), strict=True)
    ]
    tokens = [text.pop("prompt_token_ids") for text in texts]
    outputs = seeing.generate(texts, few, use_tqdm=False)
    assert [output.prompt_token_ids for output in outputs] == tokens


def test_prompts_that_are_read_whole() -> None:
    case = SquareModel("llava_next_video")
    with engine(case, 512) as made:
        assert generated(made, prompts(case)) == expected(case)


def test_a_video_alone_is_as_in_a_batch() -> None:
    """And a conversation's template puts its placeholder in."""
    case = SquareModel("llava_next_video")
    frames = case.expected["film/frames"]
    with engine(case, 32) as made:
        [alone] = generated(made, [prompts(case)[PROMPTS[case.name].index("video")]])
        parts = [{"type": "video", "video": frames}, {"type": "text", "text": "What happens?"}]
        (output,) = made.chat([{"role": "user", "content": parts}], GREEDY, use_tqdm=False)
    greedy = case.expected["video/greedy"].tolist()
    assert alone == output.outputs[0].token_ids == greedy
    assert output.prompt_token_ids == case.expected["video/prompt"].tolist()


def test_several_pictures_of_a_conversation_are_no_tiles() -> None:
    """As `apply_chat_template` of `transformers` has them; those of a raw prompt are."""
    case = SquareModel("llava_onevision")
    pictures = case.media("several")["image"]
    parts = [{"type": "image", "image": picture} for picture in pictures]
    texts = [{"type": "text", "text": text} for text in ("and", ": which is red?")]
    content = [parts[0], texts[0], parts[1], texts[1]]
    template = (
        "<|im_start|>user\n{% for part in messages[0].content %}"
        "{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}"
        "<|im_end|>\n<|im_start|>assistant{{ '\\n' }}"
    )
    with engine(case, 512) as made:
        (output,) = made.chat(
            [{"role": "user", "content": content}], GREEDY, use_tqdm=False, chat_template=template
        )
    assert output.prompt_token_ids == case.expected["several/prompt"].tolist()
    assert output.outputs[0].token_ids == case.expected["several/greedy"].tolist()
