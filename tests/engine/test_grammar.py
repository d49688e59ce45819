"""Structured outputs: every form, alone and in a batch, and what is refused."""

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import llguidance
import pytest

from quire import Engine, OptionError, SamplingParams, StructuredOutputsParams
from quire.engine import grammar

PROMPT = "The capital of France is"
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(max_num_seqs=4, enforce_eager=True, use_tqdm_on_load=False) as engine:
        yield engine


def params(seed: int = 0, **form: Any) -> SamplingParams:
    return SamplingParams(seed=seed, max_tokens=120, structured_outputs=form)


def generate(engine: Engine, *each: SamplingParams) -> list[str]:
    outputs = engine.generate([PROMPT] * len(each), list(each), use_tqdm=False)
    assert {output.outputs[0].finish_reason for output in outputs} == {"stop"}
    return [output.outputs[0].text for output in outputs]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("schema", [SCHEMA, json.dumps(SCHEMA)], ids=["dict", "text"])
def test_json_follows_its_schema(engine: Engine, schema: Any, seed: int) -> None:
    [text] = generate(engine, params(seed, json=schema))
    value = json.loads(text)
    assert set(value) == {"name", "age"}
    assert len(value["name"]) <= 6
    assert 0 <= value["age"] <= 120


def test_json_without_white_space(engine: Engine) -> None:
    [text] = generate(engine, params(json=SCHEMA, disable_any_whitespace=True))
    assert text == json.dumps(json.loads(text), separators=(",", ":"), ensure_ascii=False)


def test_regex_choice_and_grammars(engine: Engine) -> None:
    lark, gbnf = 'start: "<" ("a" | "b")~1..3 ">"', 'root ::= "ab" | "cd"'
    texts = generate(
        engine,
        params(regex="[0-9]{3}-[a-f]{2}"),
        params(choice=["yes", "no"]),
        params(grammar=lark),
        params(grammar=gbnf),
    )
    patterns = ("[0-9]{3}-[a-f]{2}", "yes|no", "<[ab]{1,3}>", "ab|cd")
    for text, pattern in zip(texts, patterns, strict=True):
        assert re.fullmatch(pattern, text)


def test_rows_with_and_without_a_form_share_batches(engine: Engine) -> None:
    each = [
        params(1, json=SCHEMA),
        SamplingParams(temperature=0, max_tokens=8),
        params(2, regex="[a-z]{20}"),
        SamplingParams(temperature=1, seed=3, max_tokens=30, logprobs=2, ignore_eos=True),
    ]
    prompts = [PROMPT] * len(each)
    together = engine.generate(prompts, each, use_tqdm=False)
    alone = [engine.generate(PROMPT, one, use_tqdm=False)[0] for one in each]
    assert [o.outputs[0].token_ids for o in together] == [o.outputs[0].token_ids for o in alone]
    assert together[1].outputs[0].text == " Paris."


def test_each_of_several_outputs_has_a_state_of_its_own(engine: Engine) -> None:
    asked = SamplingParams(n=3, seed=1, structured_outputs={"regex": "[a-z]{5}"})
    [output] = engine.generate(PROMPT, asked, use_tqdm=False)
    texts = [one.text for one in output.outputs]
    assert all(re.fullmatch("[a-z]{5}", text) for text in texts)
    assert len(set(texts)) > 1


@pytest.mark.parametrize(
    ("form", "part"),
    [
        ({"regex": "[0-9"}, "invalid regex"),
        ({"json": {"type": "nonsense"}}, "nonsense"),
        ({"grammar": "begin: 'x'"}, "rule named start"),
        ({"grammar": "start: ("}, "structured_outputs cannot be followed"),
    ],
)
def test_a_form_that_cannot_be_followed_is_refused(
    engine: Engine, form: dict[str, Any], part: str
) -> None:
    with pytest.raises(OptionError, match=re.escape(part)):
        engine.generate(PROMPT, params(**form), use_tqdm=False)


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"regex": "a", "choice": ["b"]},
        {"regex": 3},
        {"choice": []},
        {"choice": [""]},
        {"json": "{"},
        {"json": 3},
        {"json_object": False},
        {"structural_tag": "x"},
        {"pattern": "x"},
    ],
)
def test_malformed_forms_are_refused(form: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        StructuredOutputsParams(**form)


@pytest.mark.parametrize(
    "other", [{"min_tokens": 2}, {"allowed_token_ids": [1]}, {"bad_words": ["x"]}]
)
def test_what_could_leave_no_token_is_refused(other: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="could leave no token"):
        SamplingParams(structured_outputs={"regex": "a"}, **other)
    with pytest.raises(OptionError, match="structured_outputs=3"):
        SamplingParams(structured_outputs=3)  # type: ignore[arg-type]


def test_a_form_that_takes_too_long_is_refused(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = llguidance.LLMatcher

    def slow(*args: Any, **options: Any) -> Any:
        time.sleep(1)
        return real(*args, **options)

    # what is patched lacks nothing that makes grammars, only the speed
    monkeypatch.setattr(slow, "grammar_from_regex", real.grammar_from_regex, raising=False)
    monkeypatch.setattr(llguidance, "LLMatcher", slow)
    monkeypatch.setattr(grammar, "_SECONDS", 0.05)
    with pytest.raises(OptionError, match="did not compile within"):
        engine.generate(PROMPT, params(regex="[xyz]{3}"), use_tqdm=False)
