"""Mistakes in what a job is asked for, all told before a model loads."""

import importlib.util
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from quire import AsyncEngine, OptionError, QuireError, SamplingParams, StructuredOutputsParams
from quire.batch import run
from quire.entrypoints.batch.plan import make_plan

from .conftest import FRANCE, write_lines


class Unloadable:
    """Stands for the engine's class where nothing may run."""

    def __init__(self, *args: object, **options: object) -> None:
        raise AssertionError("the model was loaded")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Inputs of all kinds."""
    write_lines(tmp_path / "rows.jsonl", {"prompt": FRANCE})
    write_lines(tmp_path / "taken.jsonl", {"prompt": FRANCE, "text": 1, "error": 2})
    write_lines(tmp_path / "openai.jsonl", {"custom_id": "a", "url": "/v1/completions", "body": {}})
    write_lines(tmp_path / "rows.txt", {"prompt": FRANCE})
    pq.write_table(pa.table({"promt": [FRANCE], "seed": [1]}), tmp_path / "other.parquet")
    pq.write_table(pa.table({"prompt": [FRANCE], "text": [1]}), tmp_path / "taken.parquet")
    write_lines(tmp_path / "broken.parquet", "text")
    return tmp_path


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("nowhere.jsonl", {}, "nowhere.jsonl cannot be read: .*No such file"),
        ("rows.txt", {}, "rows.txt must end in one of .jsonl, .ndjson, .parquet"),
        ("broken.parquet", {}, "broken.parquet cannot be read as Parquet"),
        ("rows.jsonl", {"output": "y.csv"}, "y.csv must end in one of .jsonl"),
        ("rows.jsonl", {"output": "rows.jsonl"}, "is the input and the output"),
        ("rows.jsonl", {"output": "no/y.jsonl"}, "no/y.jsonl cannot be written"),
        ("rows.jsonl", {"sampling_params": {"temperature": 9}}, "temperature=9"),
        ("rows.jsonl", {"sampling_params": {"temprature": 0}}, "mean 'temperature'"),
        ("rows.jsonl", {"sampling_params": {"logprobs": 1}}, "logprobs has no place in a batch"),
        ("rows.jsonl", {"sampling_params": SamplingParams(logprobs=1)}, "logprobs=1 has no place"),
        ("rows.jsonl", {"max_model_lem": 7}, "mean 'max_model_len'"),
        ("rows.jsonl", {"lora_modules": "a=b"}, r"must be a list: give \['a=b'\]"),
        ("rows.jsonl", {"lora_modules": ["a"], "enable_lora": True}, "has no text as path"),
        ("rows.jsonl", {"lora_modules": ["a=b"]}, "lora_modules needs --enable-lora"),
        ("rows.jsonl", {"lora_modules": ["demo=b"], "enable_lora": True}, "as the model is called"),
        ("rows.jsonl", {"served_model_name": ["m"]}, "served_model_name has no effect here"),
        ("rows.jsonl", {"tool_call_parser": "hermes"}, "has no OpenAI lines. Leave it out"),
        ("openai.jsonl", {"prompt_column": "q"}, "prompt_column has no effect here"),
        ("openai.jsonl", {"tool_call_parser": "no"}, "no tool parser 'no'"),
        ("openai.jsonl", {"enable_auto_tool_choice": True}, "needs tool_call_parser"),
        ("openai.jsonl", {"output": "y.parquet"}, "has OpenAI lines, which .* cannot hold"),
        ("taken.jsonl", {}, "has columns text, error, where answers would go.*--result-prefix"),
        ("taken.parquet", {}, "has columns text, where answers would go"),
        (
            "other.parquet",
            {},
            "no column prompt or messages.* mean 'promt'.* promt, seed: name one",
        ),
        ("other.parquet", {"prompt_column": "promtp"}, "no column promtp. Did you mean 'promt'"),
        ("rows.jsonl", {"engine": "demo"}, "engine='demo' must be an AsyncEngine"),
    ],
)
def test_mistakes_are_told_before_a_model_loads(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    options: dict[str, Any],
    message: str,
) -> None:
    import quire

    if "max_model_lem" not in options and "engine" not in options:
        monkeypatch.setattr(quire, "AsyncEngine", Unloadable)
    given = {"output": "y.jsonl", **options}
    output = folder / given.pop("output")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(QuireError, match=message):
        run(folder / source, output, use_tqdm=False, **given)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_an_engine_that_is_given_has_its_own_options(folder: Path, engine: AsyncEngine) -> None:
    with pytest.raises(OptionError, match="model, dtype: the engine that is given has its own"):
        run(folder / "rows.jsonl", folder / "y.jsonl", "demo", engine=engine, dtype="float32")


def test_a_missing_pyarrow_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "pyarrow" else find(name)
    )
    message = r"y.parquet needs pyarrow: run `pip install 'quire\[parquet\]'`"
    with pytest.raises(OptionError, match=message):
        run(folder / "rows.jsonl", folder / "y.parquet")


def test_sampling_is_told_as_json(folder: Path) -> None:
    structure = StructuredOutputsParams(regex="a+")
    given = SamplingParams(logit_bias={3: 1}, stop="x", structured_outputs=structure)
    plan = make_plan(folder / "rows.jsonl", folder / "y.jsonl", None, None, given, {})
    assert plan.asking.sampling["logit_bias"] == {"3": 1.0}
    assert plan.asking.sampling["stop"] == ["x"]
    assert plan.asking.sampling["max_tokens"] == 16
    assert plan.asking.sampling["structured_outputs"]["regex"] == "a+"
    assert SamplingParams(**plan.asking.sampling).structured_outputs == structure
    assert plan.settings["sampling max_tokens"] == 16
    assert plan.settings["model"] == "demo"
