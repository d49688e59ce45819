"""The text that the demo model is trained on: made from a seed, split by question, and right."""

import importlib
import json
import re
import sys
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "demo"))
data, pool, questions, render, slots, talk, tools, turns = (
    importlib.import_module(name)
    for name in ("data", "pool", "questions", "render", "slots", "talk", "tools", "turns")
)
TOKENIZER = ROOT / "models" / "demo" / "tokenizer.json"


def training_texts(count: int) -> list[str]:
    documents = islice(data.training_documents(3), count)
    return ["".join(text for text, _ in document.segments) for document in documents]


def test_documents_depend_on_the_seed_alone() -> None:
    first, again = (list(islice(data.training_documents(5), 200)) for _ in range(2))
    other = list(islice(data.training_documents(6), 200))
    assert first == again
    assert first != other
    assert data.held_out("sums", 10) == data.held_out("sums", 10)


@pytest.mark.parametrize("kind", data.HELD_OUT_KINDS)
def test_every_kind_has_held_out_questions_that_training_lacks(kind: str) -> None:
    documents = data.held_out(kind, 15)
    assert len(documents) == 15
    assert {document.kind for document in documents} == {kind}
    assert not {document.prompt for document in documents} & set(training_texts(1500))


def test_no_held_out_question_about_a_fact_is_asked_in_training() -> None:
    texts = training_texts(3000)
    rng = Random(1)
    for maker in (questions.capital, questions.colour, questions.calendar, talk.world_series):
        turn = turns.draw(rng, maker, held=True)
        assert not any(f"user\n{turn.question}<" in text for text in texts)
        assert not any(text.startswith(turn.question) for text in texts)


def test_both_orders_of_a_sum_are_on_the_same_side() -> None:
    rng = Random(2)
    keys = {turns.draw(rng, questions.total, held=True).key for _ in range(200)}
    sums = [tuple(map(int, key.split(" + "))) for key in keys if "+" in key]
    assert sums
    assert all(a <= b for a, b in sums)


@pytest.mark.parametrize("question", sorted(turns.PINNED))
def test_pinned_questions_are_for_training(question: str) -> None:
    assert not turns.is_held(question)


def test_sums_and_differences_are_right() -> None:
    rng = Random(3)
    for _ in range(500):
        turn = questions.total(rng)
        a, sign, b = turn.key.split(" ")
        expected = int(a) + int(b) if sign == "+" else int(a) - int(b)
        assert int(re.findall(r"\d+", turn.answer)[-1]) == expected


def schema_of(document_tools: list[dict[str, Any]], name: str) -> dict[str, Any]:
    schemas = [tool["function"]["parameters"] for tool in document_tools]
    names = [tool["function"]["name"] for tool in document_tools]
    assert names.count(name) == 1
    return schemas[names.index(name)]


@pytest.mark.parametrize("held", [False, True])
def test_calls_fit_the_schema_of_their_function(held: bool) -> None:
    rng = Random(4)
    for _ in range(300):
        scene = tools.tool_scene(rng, held)
        if not scene.calls:
            assert scene.turn.answer == tools.CANNOT
            continue
        for text, (name, arguments) in zip(scene.turn.answer.split("; "), scene.calls, strict=True):
            assert json.loads(text) == {"name": name, "parameters": arguments}
            check_arguments(schema_of(scene.tools, name), arguments)


def check_arguments(schema: dict[str, Any], arguments: dict[str, Any]) -> None:
    assert set(schema.get("required", [])) <= set(arguments) <= set(schema["properties"])
    for name, value in arguments.items():
        described = schema["properties"][name]
        assert isinstance(value, int if described["type"] == "integer" else str)
        assert value in described.get("enum", [value])


@pytest.mark.parametrize(
    ("city", "expected"),
    [
        ("San Francisco", {"location": "San Francisco, CA", "unit": "fahrenheit"}),
        ("Paris", {"location": "Paris", "unit": "celsius"}),
    ],
)
def test_weather_takes_the_state_and_the_unit_of_the_place(
    city: str, expected: dict[str, str]
) -> None:
    properties = {"location": {}, "unit": {}}
    schema = {"function": {"parameters": {"properties": properties}}}
    assert tools.weather_arguments(schema, city, None) == expected
    assert tools.weather_arguments(schema, city, "celsius")["unit"] == "celsius"


def test_memory_answers_with_what_was_said() -> None:
    rng = Random(5)
    for held in (False, True) * 50:
        *told, question = talk.memory(rng, held)
        value = question.key.split(": ")[1]
        said = any(value in turn.question for turn in told)
        assert (value in question.answer and said) or value == "none"


def test_chat_template_and_renderer_make_the_same_text() -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(TOKENIZER))
    rng = Random(6)
    for _ in range(50):
        scene = tools.tool_scene(rng, held=False)
        used = scene.tools if rng.random() < 0.7 else []
        messages = data.opening(rng) + data.exchanges([scene.turn])
        expected = "".join(text for text, _ in render.render(messages, used))
        shown = {"tools": used or None, "chat_template": render.CHAT_TEMPLATE, "tokenize": False}
        assert tokenizer.apply_chat_template(messages, **shown) == expected
        asked = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, **shown)
        assert expected.startswith(asked)
        assert asked.endswith("<|im_start|>assistant\n")


def test_chat_template_writes_calls_of_the_openai_form() -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(TOKENIZER))
    arguments = {"location": "Paris"}
    calls = [
        {"type": "function", "function": {"name": "get_weather", "arguments": given}}
        for given in (arguments, json.dumps(arguments))
    ]
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "ipython", "content": "sunny"},
    ]
    text = tokenizer.apply_chat_template(
        messages, chat_template=render.CHAT_TEMPLATE, tokenize=False
    )
    call = render.call_text("get_weather", arguments)
    assert f"user\nWeather?<|im_end|>\n<|im_start|>assistant\n{call}; {call}<|im_end|>" in text
    assert text.endswith("<|im_start|>tool\nsunny<|im_end|>\n")


def test_pieces_are_tokenized_like_the_whole_text() -> None:
    tokenizer = pool.load_tokenizer(TOKENIZER)
    documents = list(islice(data.training_documents(7), 300))
    for document, row in zip(documents, pool.encode(tokenizer, documents), strict=True):
        text = "".join(piece for piece, _ in document.segments)
        assert (row % pool.FLAG).tolist() == tokenizer.encode(text).ids
        assert tokenizer.decode((row % pool.FLAG).tolist(), skip_special_tokens=False) == text


def test_every_digit_is_a_token() -> None:
    tokens = pool.load_tokenizer(TOKENIZER).encode("12 + 345=1970s").tokens
    assert [token for token in tokens if token.strip("Ġ").isdigit()] == list("123451970")


def test_flags_mark_the_answers_and_rows_are_padded() -> None:
    tokenizer = pool.load_tokenizer(TOKENIZER)
    documents = data.held_out("memory", 20)
    rows = pool.encode(tokenizer, documents, last_only=True)
    for document, row in zip(documents, rows, strict=True):
        answer = row[row // pool.FLAG == pool.ANSWER] % pool.FLAG
        assert tokenizer.decode(answer.tolist(), skip_special_tokens=False) == document.answer
    arrays, places = pool.bucket(rows)
    assert sorted(i for place in places for i in place) == list(range(20))
    for array, place, length in zip(arrays, places, pool.LENGTHS, strict=True):
        assert array.shape == (len(place), length)
        for line, i in zip(array, place, strict=True):
            np.testing.assert_array_equal(line[: len(rows[i])], rows[i])
            assert not line[len(rows[i]) :].any()


def test_a_document_beyond_the_longest_row_is_left_out() -> None:
    arrays, places = pool.bucket([np.ones(pool.LENGTHS[-1] + 1, np.uint16)])
    assert not any(places)
    assert not any(map(len, arrays))
