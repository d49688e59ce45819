"""The embedded demo model, through the engine: it ships, is small, and knows what it was taught."""

import importlib
import sys
from pathlib import Path

import pytest

from quire import Engine, SamplingParams
from quire.engine.model import DEMO_FOLDER

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts" / "demo"))
data = importlib.import_module("data")


def test_it_is_at_most_six_megabytes() -> None:
    assert sum(path.stat().st_size for path in DEMO_FOLDER.iterdir()) <= 6_000_000


@pytest.mark.slow
def test_it_answers_what_it_was_held_out_from() -> None:
    """At least 95 % of unseen questions, to the letter, all of them in one call."""
    documents = [one for kind in data.HELD_OUT_KINDS for one in data.held_out(kind, 20)]
    params = SamplingParams(temperature=0, max_tokens=200, skip_special_tokens=False)
    params.include_stop_str_in_output = True
    with Engine(enforce_eager=True, use_tqdm_on_load=False) as engine:
        tokenizer = engine.get_tokenizer()
        prompts = [
            tokenizer.encode(document.prompt, add_special_tokens=False) for document in documents
        ]
        outputs = engine.generate(prompts, params, use_tqdm=False)
    right = [
        output.outputs[0].text == document.answer
        for output, document in zip(outputs, documents, strict=True)
    ]
    assert sum(right) / len(right) >= 0.95


def test_it_chats() -> None:
    with Engine(enforce_eager=True, use_tqdm_on_load=False) as engine:
        question = [{"role": "user", "content": "What is the capital of Japan?"}]
        [output] = engine.chat(question, SamplingParams(temperature=0), use_tqdm=False)
    assert output.outputs[0].text == "The capital of Japan is Tokyo."
