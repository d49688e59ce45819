"""One engine for the jobs of these tests, and files for them."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.test_seeds import DEMO, SQL

from quire import AsyncEngine

FRANCE = "The capital of France is"
ITALY = [{"role": "user", "content": "What is the capital of Italy?"}]
GREEDY: Mapping[str, Any] = {"temperature": 0, "max_tokens": 8}
CARS = "Table cars: name, price, age\nWhich cars cost more than 300?\nSQL:"
SMALL: Mapping[str, Any] = {"enforce_eager": True, "use_tqdm_on_load": False}


@pytest.fixture(scope="session")
def engine() -> Iterator[AsyncEngine]:
    """Computes in float32, so that answers do not depend on what else is computed."""
    engine = AsyncEngine(DEMO, dtype="float32", max_model_len=128, enable_lora=True, **SMALL)
    yield engine
    engine.close()


def write_lines(path: Path, *lines: object) -> Path:
    """A file of lines: text as it is, all else as JSON."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(text + "\n" for text in texts))
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_ids(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Answers to OpenAI lines without what is another in each run."""
    kept: list[dict[str, Any]] = []
    for one in answers:
        response = one["response"] and {**one["response"], "request_id": None}
        if response:
            response["body"] = {**response["body"], "id": None, "created": None}
        kept.append({**one, "id": None, "response": response})
    return kept


ADAPTERS = [f"sql={SQL}"]
