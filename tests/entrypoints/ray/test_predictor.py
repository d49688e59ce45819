"""What an actor of a data set does, without Ray."""

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tests.test_seeds import DEMO

from quire import EngineClosedError, OptionError
from quire.ray import Predictor

FRANCE = "The capital of France is"
GREEDY: dict[str, Any] = {"sampling_params": {"temperature": 0, "max_tokens": 8}}
SMALL: dict[str, Any] = {"enforce_eager": True, "dtype": "float32", "max_model_len": 128}
ADDED = ["text", "finish_reason", "prompt_tokens", "completion_tokens", "error"]


@pytest.fixture(scope="module")
def predictor() -> Iterator[Predictor]:
    predictor = Predictor(DEMO, max_num_seqs=4, **GREEDY, **SMALL)
    yield predictor
    predictor.close()


def answered(predictor: Predictor, *batches: Any) -> list[pa.Table]:
    """The answers to batches that are asked at once."""

    async def main() -> list[pa.Table]:
        return await asyncio.gather(*(predictor(batch) for batch in batches))

    return asyncio.run(main())


def test_arrays_and_tables_are_answered_alike(predictor: Predictor) -> None:
    rows = [{"id": i, "prompt": FRANCE if i % 3 else None} for i in range(7)]
    table = pa.Table.from_pylist(rows)
    arrays = {name: np.array(table[name].to_pylist()) for name in table.column_names}
    of_table, of_arrays = answered(predictor, table, arrays)
    assert of_table.equals(of_arrays)
    assert of_table.column_names == ["id", "prompt", *ADDED]
    assert of_table.select(["id", "prompt"]).equals(table)
    for i, row in enumerate(of_table.to_pylist()):
        assert (row["error"] is None) == bool(i % 3)
        assert ("Paris" in row["text"]) if i % 3 else ("needs one of prompt" in row["error"])


def test_batches_overlap(predictor: Predictor) -> None:
    """A batch of one long row leaves room for another batch meanwhile."""
    long = pa.table({"prompt": [FRANCE], "max_tokens": [100], "ignore_eos": [True]})
    short = pa.table({"prompt": [FRANCE] * 3})
    order: list[str] = []

    async def ask(name: str, batch: pa.Table) -> None:
        await predictor(batch)
        order.append(name)

    async def main() -> None:
        await asyncio.gather(ask("long", long), ask("short", short))

    asyncio.run(main())
    assert order == ["short", "long"]


def test_types_are_the_same_whatever_a_batch_has(predictor: Predictor) -> None:
    good, bad = answered(predictor, {"prompt": np.array([FRANCE])}, {"prompt": np.array([""])})
    assert good.schema == bad.schema
    assert [str(one.type) for one in good.schema] == [*["string"] * 3, *["int64"] * 2, "string"]


def test_with_a_column_n_answers_are_lists(predictor: Predictor) -> None:
    batch = {"prompt": np.array([FRANCE, FRANCE]), "n": np.array([1, 2]), "temperature": [1.0, 1.0]}
    (table,) = answered(predictor, pa.table(batch))
    assert [len(one) for one in table["text"].to_pylist()] == [1, 2]
    assert table["prompt_tokens"].to_pylist() == [6, 6]


def test_no_rows_are_no_mistake(predictor: Predictor) -> None:
    nothing, none = answered(predictor, {}, pa.table({"prompt": pa.array([], pa.string())}))
    assert nothing.num_columns == 0
    assert none.column_names == ["prompt", *ADDED]
    assert none.num_rows == 0


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"promt": ["a"]}, "no column prompt or messages. Did you mean 'promt'"),
        ({"prompt": ["a"], "text": ["b"]}, "has columns text, where answers would go"),
    ],
)
def test_columns_that_cannot_be_end_the_job(
    predictor: Predictor, batch: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        answered(predictor, pa.table(batch))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overwrite": True}, "overwrite has no effect on a data set"),
        ({"served_model_name": ["m"]}, "served_model_name has no effect on a data set"),
        ({"lora_modules": ["a=b"]}, "lora_modules needs --enable-lora"),
        ({"sampling_params": {"logprobs": 1}}, "logprobs has no place in a batch"),
        ({"max_model_lem": 7}, "mean 'max_model_len'"),
    ],
)
def test_mistakes_are_told_when_it_is_made(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Predictor(DEMO, **options)


def test_its_end_closes_the_engine() -> None:
    predictor = Predictor(DEMO, prompt_column="text", result_prefix="a_", **GREEDY, **SMALL)
    batch = pa.table({"text": [FRANCE]})
    (table,) = answered(predictor, batch)
    assert table.column_names == ["text", *(f"a_{name}" for name in ADDED)]
    engine = predictor._form._engine
    del predictor
    assert not engine.is_running


def test_a_dead_engine_ends_the_job() -> None:
    predictor = Predictor(DEMO, **GREEDY, **SMALL)
    predictor.close()
    with pytest.raises(EngineClosedError):
        answered(predictor, pa.table({"prompt": [FRANCE]}))
