"""The adapter of the demo model that ships as an example: small, in PEFT's format, and right."""

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from quire import Engine, LoRARequest, RequestOutput, SamplingParams
from quire.engine.checkpoint.safetensors_file import open_safetensors
from quire.engine.model import find_spec
from quire.engine.options import EngineOptions
from quire.lora.config import read_config
from quire.lora.reader import read_adapter

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples" / "sql_adapter"
sys.path.insert(0, str(ROOT / "scripts" / "demo"))
tables = importlib.import_module("tables")
CONFIG = FOLDER / "adapter_config.json"
WEIGHTS = FOLDER / "adapter_model.safetensors"


def is_right(output: RequestOutput, question: Any) -> bool:
    """To the letter, and ended by the model itself."""
    (answer,) = output.outputs
    return answer.text == question.answer and answer.finish_reason == "stop"


def test_it_is_at_most_two_hundred_kilobytes() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {CONFIG.name, WEIGHTS.name}
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 200_000


def test_it_fits_the_demo_model(caplog: pytest.LogCaptureFixture) -> None:
    fields = json.loads(CONFIG.read_text())
    tensors = {name: tensor.array for name, tensor in open_safetensors(WEIGHTS).items()}
    spec = find_spec(EngineOptions(enable_lora=True)).adapters
    assert spec is not None
    config = read_config(fields, "sql")
    adapter = read_adapter("sql", config, tensors, spec.base, max_rank=config.rank)
    assert not caplog.records
    assert {name.split(".")[-3] for name in tensors} == set(fields["target_modules"])
    assert adapter.rank == fields["r"] == 8
    assert {tensor.dtype.name for tensor in tensors.values()} == {"float16"}


def test_no_held_out_pair_or_number_is_in_training() -> None:
    training = tables.training_questions(0, 2000)
    held_out = tables.held_out_questions(200)
    assert not asked(training) & asked(held_out)
    assert not numbers(training) & numbers(held_out)


def asked(questions: list[Any]) -> set[tuple[str, str]]:
    """The pairs of a table and the column that a question is about."""
    pairs = set()
    for question in questions:
        (table,) = re.findall(r"FROM (\w+)", question.answer)
        (column,) = re.findall(r"(?:WHERE|ORDER BY|MAX|MIN|AVG|SUM)\W(\w+)", question.answer)
        pairs.add((table, column))
    return pairs


def numbers(questions: list[Any]) -> set[str]:
    """What columns are compared with."""
    return {n for question in questions for n in re.findall(r"[<>=] (\d+)", question.answer)}


@pytest.mark.slow
def test_it_answers_what_it_was_held_out_from() -> None:
    """At least 95 % of unseen questions, and the base almost none of them, all in one call."""
    questions = tables.held_out_questions(300)
    asked_of_base = questions[::3]
    params = SamplingParams(temperature=0, max_tokens=48)
    requests = [LoRARequest("sql", 1, str(FOLDER))] * len(questions) + [None] * len(asked_of_base)
    prompts = [question.prompt for question in questions + asked_of_base]
    with Engine(enforce_eager=True, enable_lora=True, use_tqdm_on_load=False) as engine:
        outputs = engine.generate(prompts, params, use_tqdm=False, lora_request=requests)
    right = list(map(is_right, outputs, questions + asked_of_base))
    assert sum(right[: len(questions)]) / len(questions) >= 0.95
    assert sum(right[len(questions) :]) / len(asked_of_base) <= 0.02
