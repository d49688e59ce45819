"""Data sets and applications on a Ray of this machine, which is a process of its own."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.once import once

from quire.batch import run

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[3]
LIMIT = 600
FRANCE = "The capital of France is"
ITALY = [{"role": "user", "content": "What is the capital of Italy?"}]
CARS = "Table cars: name, price, age\nWhich cars cost more than 300?\nSQL:"
KINDS: list[dict[str, Any]] = [
    {"prompt": FRANCE},
    {"messages": ITALY},
    {"prompt": CARS, "lora": "sql", "max_tokens": 24},
    {"prompt": FRANCE, "max_tokens": 3},
    {"prompt": FRANCE, "temperature": 9.0},
    {"prompt": FRANCE, "lora": "none such"},
    {"prompt": ""},
]
SCHEMA = pa.schema(
    {
        "id": pa.int16(),
        "prompt": pa.string(),
        "messages": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
        "lora": pa.string(),
        "max_tokens": pa.int32(),
        "temperature": pa.float64(),
        "payload": pa.binary(),
    }
)
PREDICTOR: dict[str, Any] = {
    "sampling_params": {"temperature": 0, "max_tokens": 16},
    "dtype": "float32",  # so that answers do not depend on what else is computed
    "enforce_eager": True,
    "enable_lora": True,
    "lora_modules": [f"sql={ROOT / 'examples' / 'sql_adapter'}"],
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the driver finds."""
    return once(tmp_path_factory, "ray", lambda: drive(tmp_path_factory.mktemp("ray")))


def drive(folder: Path) -> dict[str, Any]:
    rows = [{"id": i, "payload": b"\xff", **KINDS[i % len(KINDS)]} for i in range(40)]
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), folder / "rows.parquet")
    argv = ["-m", "tests.entrypoints.ray.driver", str(folder), json.dumps(PREDICTOR)]
    done = subprocess.run(
        [sys.executable, *argv],
        cwd=ROOT,
        env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stderr[-8000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_data_set_is_answered_as_a_file_is(found: dict[str, Any], tmp_path: Path) -> None:
    folder = Path(found["data_set"]["folder"])
    options: dict[str, Any] = PREDICTOR | {"use_tqdm": False, "use_tqdm_on_load": False}
    done = run(folder / "rows.parquet", tmp_path / "answers.parquet", "demo", **options)
    answers = pq.read_table(folder / "answers.parquet")
    assert answers.equals(pq.read_table(tmp_path / "answers.parquet"))
    assert (done.rows, done.errors) == (40, 16)
    paris, rome, sql, short, *errors = answers.to_pylist()[: len(KINDS)]
    assert "Paris" in paris["text"]
    assert "Rome" in rome["text"]
    assert "SELECT" in sql["text"]
    assert short["completion_tokens"] == 3
    assert [one["error"].split("=")[0] for one in errors[:2]] == ["temperature", "lora"]
    assert all(one["text"] is None for one in errors)


def test_every_engine_answers_and_is_closed(found: dict[str, Any]) -> None:
    assert len(found["data_set"]["processes"]) == 2
    assert found["data_set"]["closed"] == found["data_set"]["processes"]


def test_programs_answer_data_sets(found: dict[str, Any]) -> None:
    assert found["programs"]["example"].endswith("few: 2 rows, 1 errors\n")
    first, second, third = map(ast.literal_eval, found["programs"]["page"].splitlines())
    assert [first["id"], second["id"], third["id"]] == [0, 1, 2]
    assert first["prompt"] == "0 + 3 ="
    assert "3" in first["text"]
    assert first["error"] is None


def test_an_application_answers(found: dict[str, Any]) -> None:
    served = found["answered"]
    assert "Paris" in served["example"]
    assert served["models"] == ["demo"]
    assert served["text"] == " Paris"
    assert served["health"] == 200
    status, message = served["unknown"]
    assert (status, message) == (404, "The model `x` does not exist. Served here: demo.")


def test_it_streams(found: dict[str, Any]) -> None:
    arrived = found["answered"]["arrived"]
    assert len(arrived) > 10
    assert arrived[-1] - arrived[0] > 0.01


def test_answers_bear_one_request_id(found: dict[str, Any]) -> None:
    header, answer_id = found["answered"]["request id"]
    assert answer_id == f"cmpl-{header}"


def test_no_stream_fails_while_a_replica_is_replaced(found: dict[str, Any]) -> None:
    replaced = found["replaced"]
    before, after = replaced["replicas"]
    assert len(before) == 1
    assert set(after) - set(before)
    assert replaced["failed"] == []
    assert len(replaced["ended"]) >= 6
    assert set(replaced["ended"]) == {"length"}
    assert replaced["models"] == ["demo", "gpt-4o-mini"]
    assert "Rome" in replaced["page"]


def test_a_replica_whose_engine_died_is_replaced(found: dict[str, Any]) -> None:
    before, after = found["died"]["replicas"]
    assert set(after) - set(before)
    *failures, (status, answer) = found["died"]["answers"]
    assert status == 200
    assert json.loads(answer)["choices"][0]["text"] == " Paris"
    assert failures
    assert {status for status, _ in failures} <= {500, 503}
    assert "The engine is not running" in failures[0][1]


def test_a_config_file_builds_an_application(found: dict[str, Any]) -> None:
    status, answer = found["configured"]["secret"]
    assert (status, answer["choices"][0]["text"]) == (200, " Paris")
    status, answer = found["configured"]["wrong"]
    assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
