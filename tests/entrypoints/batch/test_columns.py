"""Rows with prompts and conversations, answered by the demo model."""

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.lora_folders import lora_folder
from tests.test_seeds import DEMO

from quire import AdapterError, AsyncEngine, LoRARequest, SamplingParams
from quire.batch import Summary, run

from .conftest import ADAPTERS, CARS, FRANCE, GREEDY, ITALY, SMALL, read_lines, write_lines

ADDED = {"text", "finish_reason", "prompt_tokens", "completion_tokens", "error"}


def answers(
    tmp_path: Path, engine: AsyncEngine, *lines: object, **options: Any
) -> list[dict[str, Any]]:
    """The output lines of a job of lines, which are greedy unless they say otherwise."""
    source = write_lines(tmp_path / "x.jsonl", *lines)
    options = {"sampling_params": GREEDY, "use_tqdm": False, **options}
    summary = run(source, tmp_path / "y.jsonl", engine=engine, **options)
    found = read_lines(tmp_path / "y.jsonl")
    assert summary.rows == len(found)
    assert summary.errors == sum(
        one[f"{options.get('result_prefix', '')}error"] is not None for one in found
    )
    assert {path.name for path in tmp_path.iterdir()} >= {"x.jsonl", "y.jsonl"}
    assert not list(tmp_path.glob("y.jsonl.*"))
    return found


def test_all_columns_are_kept_and_the_answer_added(tmp_path: Path, engine: AsyncEngine) -> None:
    row = {"id": "é", "prompt": FRANCE, "nested": {"a": [1, None]}, "max_tokens": 3, "stop": None}
    (found,) = answers(tmp_path, engine, row)
    assert list(found) == [
        *row,
        "text",
        "finish_reason",
        "prompt_tokens",
        "completion_tokens",
        "error",
    ]
    assert found == row | {
        "text": " Paris",
        "finish_reason": "length",
        "prompt_tokens": 6,
        "completion_tokens": 3,
        "error": None,
    }


def test_rows_of_all_kinds_stay_in_order(tmp_path: Path, engine: AsyncEngine) -> None:
    tokens = engine.get_tokenizer().encode(FRANCE)
    kinds: list[dict[str, Any]] = [
        {"prompt": FRANCE},
        {"messages": ITALY, "max_tokens": 24},
        {"prompt": tokens},
        {"prompt": FRANCE, "messages": None, "max_tokens": 1, "ignore_eos": True},
    ]
    rows = [{"id": i, **kinds[i % 4]} for i in range(120)]
    found = answers(tmp_path, engine, *rows)
    assert [one["id"] for one in found] == list(range(120))
    for first in range(4):
        assert len({one["text"] for one in found[first::4]}) == 1
    assert found[0]["text"] == found[2]["text"]
    assert "Paris" in found[0]["text"]
    assert "Rome" in found[1]["text"]
    assert found[3]["completion_tokens"] == 1


def test_several_outputs_are_lists(tmp_path: Path, engine: AsyncEngine) -> None:
    row = {"prompt": FRANCE, "n": 3, "temperature": 1.0, "seed": 1, "ignore_eos": True}
    (found,) = answers(tmp_path, engine, row)
    assert found["finish_reason"] == ["length"] * 3
    assert found["completion_tokens"] == [8, 8, 8]
    assert len(found["text"]) == 3
    assert (found["prompt_tokens"], found["error"]) == (6, None)


def test_sampling_comes_from_the_row_then_from_the_job(tmp_path: Path, engine: AsyncEngine) -> None:
    rows = [
        {"prompt": FRANCE, "max_tokens": 2},
        {"prompt": FRANCE},
        {"prompt": FRANCE, "stop": "."},
    ]
    params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
    found = answers(tmp_path, engine, *rows, sampling_params=params)
    assert [one["completion_tokens"] for one in found][:2] == [2, 5]
    assert found[2]["finish_reason"] == "stop"
    assert "." not in found[2]["text"]


def test_without_a_limit_the_model_ends_the_answer(tmp_path: Path, engine: AsyncEngine) -> None:
    sampling = {"temperature": 0, "max_tokens": None}
    rows = [{"prompt": FRANCE}, {"prompt": FRANCE, "ignore_eos": True}]
    found = answers(tmp_path, engine, *rows, sampling_params=sampling)
    assert [one["finish_reason"] for one in found] == ["stop", "length"]
    assert found[1]["prompt_tokens"] + found[1]["completion_tokens"] == 128


def test_whole_numbers_may_be_floats(tmp_path: Path, engine: AsyncEngine) -> None:
    (found,) = answers(tmp_path, engine, {"prompt": FRANCE, "max_tokens": 3.0, "top_k": 1.0})
    assert found["completion_tokens"] == 3


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("{broken", "Line 2 is not JSON: "),
        ("[]", "Line 2 is a JSON list. Write one object a line."),
        ({}, "The row needs one of prompt and messages, and not both."),
        ({"prompt": None}, "The row needs one of prompt and messages"),
        ({"prompt": "a", "messages": ITALY}, "The row needs one of prompt and messages"),
        ({"prompt": 5}, "prompt=5 must be text or a list of token ids."),
        ({"prompt": ""}, "empty"),
        ({"prompt": [10**6]}, "1000000"),
        ({"prompt": "half \ud83d"}, "lone surrogate"),
        ({"prompt": "word " * 200}, "max_model_len=128"),
        ({"messages": []}, "messages=[] must be a list of objects"),
        ({"messages": ["hello"]}, "must be a list of objects with role and content"),
        ({"messages": [{"content": "hello"}]}, "role=None"),
        ({"messages": [{"role": "user", "content": None}]}, "has no content"),
        ({"prompt": "a", "temperature": 9}, "temperature=9"),
        ({"prompt": "a", "max_tokens": "many"}, "max_tokens='many'"),
        ({"prompt": "a", "max_tokens": 1.5}, "max_tokens=1.5"),
        ({"prompt": "a", "n": 2}, "n must be 1"),
        ({"prompt": "a", "structured_outputs": {"regex": "("}}, "regex"),
        ({"prompt": "a", "lora": "sql"}, "lora='sql' names no adapter. There are none"),
        ({"prompt": "a", "lora": [1]}, "lora=[1] names no adapter."),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
            "which this model does not take",
        ),
        ('{"prompt": 1, "deep": ' + "[" * 940 + "]" * 940 + "}", "prompt=1 must be text"),
    ],
)
def test_a_bad_row_is_an_error_row(
    tmp_path: Path, engine: AsyncEngine, line: object, error: str
) -> None:
    good = {"prompt": FRANCE}
    first, bad, last = answers(tmp_path, engine, good, line, good)
    assert first == last
    assert first["error"] is None
    assert error in bad["error"]
    assert all(bad[name] is None for name in ADDED - {"error"})
    kept = {name: value for name, value in bad.items() if name not in ADDED}
    row = line if isinstance(line, dict) else {}
    assert kept in (row, json.loads(line) if isinstance(line, str) and line[-1] == "}" else row)


def test_a_job_of_errors_alone_ends_well(tmp_path: Path, engine: AsyncEngine) -> None:
    found = answers(tmp_path, engine, *["broken"] * 300)
    assert [one["error"].split(" is")[0] for one in found] == [f"Line {i + 1}" for i in range(300)]


def test_an_empty_job_gives_an_empty_output(tmp_path: Path, engine: AsyncEngine) -> None:
    assert answers(tmp_path, engine) == []
    assert answers(tmp_path, engine, "", overwrite=True) == []


def test_another_column_may_have_the_prompt(tmp_path: Path, engine: AsyncEngine) -> None:
    rows = [
        {"question": FRANCE, "prompt": 5, "messages": 7},
        {"qestion": FRANCE},
        {"question": None},
    ]
    first, misspelt, null = answers(tmp_path, engine, *rows, prompt_column="question")
    assert "Paris" in first["text"]
    assert (first["prompt"], first["messages"]) == (5, 7)
    assert misspelt["error"] == "The row has nothing as 'question'. Did you mean 'qestion'?"
    assert null["error"] == "The row has nothing as 'question'."


def test_results_may_have_a_prefix(tmp_path: Path, engine: AsyncEngine) -> None:
    row = {"text": FRANCE, "error": "an old one"}
    options = {"prompt_column": "text", "result_prefix": "answer_"}
    (found,) = answers(tmp_path, engine, row, **options)
    assert row.items() <= found.items()
    assert found.keys() - row.keys() == {f"answer_{name}" for name in ADDED}
    assert "Paris" in found["answer_text"]


def test_rows_name_adapters(tmp_path: Path, engine: AsyncEngine) -> None:
    other = lora_folder(tmp_path / "other", DEMO)
    rows = [{"prompt": CARS, "lora": name} for name in ("sql", None, "other", "sql", "no such")]
    modules = [*ADAPTERS, json.dumps({"name": "other", "path": str(other)})]
    sampling = {"temperature": 0, "max_tokens": 32}
    found = answers(tmp_path, engine, *rows, sampling_params=sampling, lora_modules=modules)
    sql, plain, made_up, again, unknown = (one["text"] for one in found)
    assert sql == again
    assert "SELECT" in sql
    assert len({sql, plain, made_up}) == 3
    assert unknown is None
    assert found[4]["error"] == "lora='no such' names no adapter. There are sql, other."


@pytest.mark.parametrize("form", ["columns", "openai"])
def test_an_engine_that_is_given_keeps_its_own_adapters_alone(
    tmp_path: Path, engine: AsyncEngine, form: str
) -> None:
    row: dict[str, Any] = {"prompt": CARS}
    if form == "openai":
        row = {"custom_id": "a", "url": "/v1/completions", "body": row}
    source = write_lines(tmp_path / "x.jsonl", row)
    options: Any = {"engine": engine, "use_tqdm": False, "overwrite": True}
    own = LoRARequest("own", 7, str(lora_folder(tmp_path / "own", DEMO)))
    asyncio.run(engine.add_lora(own))
    for name in ("one", "two"):
        folder = lora_folder(tmp_path / name, DEMO)
        run(source, tmp_path / "y.jsonl", lora_modules=[f"{name}={folder}"], **options)
        assert asyncio.run(engine.list_loras()) == {7}
    modules = [f"one={tmp_path / 'one'}", "two=/nowhere"]
    with pytest.raises(AdapterError, match="nowhere"):
        run(source, tmp_path / "y.jsonl", lora_modules=modules, **options)
    assert asyncio.run(engine.list_loras()) == {7}
    asyncio.run(engine.remove_lora(7))


def test_tables_in_and_out_agree_with_lines(tmp_path: Path, engine: AsyncEngine) -> None:
    talk = [{"role": "user", "content": "What is 2 + 3?", "name": None}]
    rows = [{"id": i, "prompt": f"{FRANCE}{i}", "messages": None} for i in range(30)]
    rows += [{"id": 30, "prompt": None, "messages": talk}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet", row_group_size=7)
    by_lines = answers(tmp_path, engine, *rows)
    options: Any = {"engine": engine, "sampling_params": GREEDY, "use_tqdm": False}
    for source, output in (("x.parquet", "y.parquet"), ("x.jsonl", "z.parquet")):
        done = run(tmp_path / source, tmp_path / output, **options)
        assert (done.rows, done.errors) == (31, 0)
        assert pq.read_table(tmp_path / output).to_pylist() == by_lines
    run(tmp_path / "x.parquet", tmp_path / "z.jsonl", **options)
    assert read_lines(tmp_path / "z.jsonl") == by_lines
    assert "5" in by_lines[-1]["text"]
    assert {path.name for path in tmp_path.iterdir()} == {
        *("x.jsonl", "x.parquet", "y.jsonl", "y.parquet", "z.jsonl", "z.parquet")
    }


def test_a_table_keeps_what_lines_cannot(tmp_path: Path, engine: AsyncEngine) -> None:
    table = pa.table({"prompt": [FRANCE], "picture": [b"\xff"], "n": pa.array([None], pa.int8())})
    pq.write_table(table, tmp_path / "x.parquet")
    options: Any = {"engine": engine, "sampling_params": GREEDY, "use_tqdm": False}
    run(tmp_path / "x.parquet", tmp_path / "y.parquet", **options)
    assert pq.read_table(tmp_path / "y.parquet").select(table.column_names).equals(table)
    run(tmp_path / "x.parquet", tmp_path / "y.jsonl", **options)
    assert read_lines(tmp_path / "y.jsonl")[0]["picture"] == base64.b64encode(b"\xff").decode()


@pytest.mark.parametrize("output", ["y.jsonl", "y.parquet"])
def test_a_medium_that_cannot_be_fetched_is_an_error_row(tmp_path: Path, output: str) -> None:
    broken = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    private = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/picture.png"}}
    text = {"type": "text", "text": "What is this?"}
    rows = [
        {"messages": [{"role": "user", "content": content}]}
        for content in ([broken, text], [private, text], "Hello", [{"type": "image_url"}])
    ]
    source = write_lines(tmp_path / "x.jsonl", *rows)
    done = run(
        source, tmp_path / output, "vision-demo", sampling_params=GREEDY, use_tqdm=False, **SMALL
    )
    assert (done.rows, done.errors) == (4, 3)
    path = tmp_path / output
    found = pq.read_table(path).to_pylist() if path.suffix == ".parquet" else read_lines(path)
    errors = [one["error"] for one in found]
    assert "are no picture" in errors[0]
    assert "127.0.0.1" in errors[1]
    assert errors[2] is None
    assert "without a medium" in errors[3]


def test_the_summary_counts_and_is_one_line(tmp_path: Path, engine: AsyncEngine) -> None:
    source = write_lines(tmp_path / "x.jsonl", {"prompt": FRANCE, "ignore_eos": True}, "broken")
    output = tmp_path / "y.jsonl"
    done = run(source, output, engine=engine, sampling_params=GREEDY, use_tqdm=False)
    assert done.seconds > 0
    assert done == Summary(output, 2, 0, 1, 6, 8, done.seconds)
    assert str(done).startswith(f"{output}: 2 rows, 1 error; 6 tokens in and 8 out in ")
    assert str(Summary(output, 2000, 1500, 2, 10, 20, 2.0)) == (
        f"{output}: 2,000 rows (1,500 of them by an earlier run), 2 errors; "
        "10 tokens in and 20 out in 2.0 s (5 and 10 tokens/s)"
    )
