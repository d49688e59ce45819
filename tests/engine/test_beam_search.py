"""Beam search: the rules against `transformers`, then the engine that is driven by them."""

import dataclasses
import itertools
import json
import math
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from quire import Engine
from quire.engine import beam_search
from quire.engine.beam_search import Beam, BeamSearch, Logprobs
from quire.engine.outputs import BeamSearchOutput, CompletionOutput, Logprob, RequestOutput
from quire.engine.prompts import Prompt
from quire.engine.reading import Reading
from quire.engine.sampling_params import BeamSearchParams, SamplingParams
from quire.engine.tokenizer import Tokenizer
from quire.errors import EngineClosedError, OptionError, PromptError

FIXTURES = Path(__file__).parents[1] / "fixtures"
RULES = json.loads((FIXTURES / "beam" / "rules.json").read_text())


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    return logits - np.logaddexp.reduce(logits, axis=-1)[..., None]


def table_of(seed: int, length: int, vocab_size: int, likely: Sequence[int] = ()) -> np.ndarray:
    """Logits as scripts/make_beam_fixtures.py makes them: [length, V, V]."""
    random = np.random.RandomState(seed)
    table = 1.5 * random.standard_normal((length, vocab_size, vocab_size))
    table[..., list(likely)] += 2
    return table.astype(np.float32)


def parameters(case: dict[str, Any]) -> BeamSearchParams:
    names = {field.name for field in dataclasses.fields(BeamSearchParams)}
    return BeamSearchParams(**{name: value for name, value in case.items() if name in names})


def solve(
    search: BeamSearch, logprobs: np.ndarray, prompt: tuple[int, ...] = (0,), likeliest: int = 999
) -> list[Beam]:
    """Runs a search over a table [length, V, V] of log-probabilities by position and last token."""
    while not search.done:
        search.advance([rows(logprobs, (*prompt, *b.token_ids), likeliest) for b in search.running])
    return search.finished


def rows(logprobs: np.ndarray, tokens: Sequence[int], likeliest: int) -> Logprobs:
    row = logprobs[len(tokens) - 1, tokens[-1]]
    order = np.argsort(-row, kind="stable")[:likeliest]
    return [(int(token), float(row[token])) for token in order]


@pytest.mark.parametrize("case", RULES, ids=lambda case: str(case["seed"]))
def test_agrees_with_transformers_on_a_table(case: dict[str, Any]) -> None:
    params, eos = parameters(case), frozenset(case["eos_token_ids"])
    table = table_of(case["seed"], case["max_tokens"] + 1, case["vocab_size"], sorted(eos))
    search = BeamSearch(params, params.max_tokens, eos)
    found = solve(search, log_softmax(table), likeliest=params.beam_width + len(eos))
    assert [list(beam.token_ids) for beam in found] == [b["token_ids"] for b in case["beams"]]
    scores = [search.score(beam) for beam in found]
    assert scores == pytest.approx([beam["score"] for beam in case["beams"]], rel=1e-5)
    assert [beam.ended for beam in found] == [beam.token_ids[-1] in eos for beam in found]


def enumerate_outputs(logprobs: np.ndarray, max_tokens: int, eos: frozenset[int]) -> list[Beam]:
    """Every output there is."""
    outputs = []
    vocab_size = logprobs.shape[-1]
    for length in range(1, max_tokens + 1):
        for tokens in itertools.product(range(vocab_size), repeat=length):
            ended = tokens[-1] in eos
            if not eos & {*tokens[:-1]} and (ended or length == max_tokens):
                last = (0, *tokens)
                logprob = sum(logprobs[i, last[i], last[i + 1]] for i in range(length))
                outputs.append(Beam(tokens, logprob, ended))
    return outputs


@given(
    seed=st.integers(0, 10**6),
    vocab_size=st.integers(2, 3),
    max_tokens=st.integers(1, 4),
    eos=st.sampled_from([frozenset[int](), frozenset([1]), frozenset([0, 1])]),
    length_penalty=st.sampled_from([0.0, 1.0, 2.0]),
    early_stopping=st.sampled_from([True, False, "never"]),
)
@settings(deadline=None, max_examples=60)
def test_a_wide_enough_search_finds_every_output(
    seed: int,
    vocab_size: int,
    max_tokens: int,
    eos: frozenset[int],
    length_penalty: float,
    early_stopping: Any,
) -> None:
    logprobs = log_softmax(table_of(seed, max_tokens, vocab_size))
    every = enumerate_outputs(logprobs, max_tokens, eos)
    params = BeamSearchParams(
        beam_width=100,
        max_tokens=max_tokens,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
    )
    search = BeamSearch(params, max_tokens, eos)
    found = solve(search, logprobs)
    assert [b.token_ids for b in found] == [
        b.token_ids for b in sorted(every, key=search.score, reverse=True)
    ]


@given(
    seed=st.integers(0, 10**6),
    width=st.integers(1, 4),
    max_tokens=st.integers(1, 6),
    eos=st.frozensets(st.integers(0, 7), max_size=3),
    early_stopping=st.sampled_from([True, False, "never"]),
)
@settings(deadline=None, max_examples=60)
def test_needs_no_more_than_the_likeliest_tokens(
    seed: int, width: int, max_tokens: int, eos: frozenset[int], early_stopping: Any
) -> None:
    logprobs = log_softmax(table_of(seed, max_tokens, 8))
    params = BeamSearchParams(
        beam_width=width, max_tokens=max_tokens, early_stopping=early_stopping
    )
    searches = [BeamSearch(params, max_tokens, eos) for _ in range(2)]
    whole = solve(searches[0], logprobs)
    assert solve(searches[1], logprobs, likeliest=width + len(eos)) == whole
    assert 1 <= len(whole) <= width
    scores = [searches[0].score(beam) for beam in whole]
    assert scores == sorted(scores, reverse=True)
    for beam in whole:
        assert not eos & {*beam.token_ids[:-1]}
        assert beam.ended or len(beam.token_ids) == max_tokens


def test_one_beam_is_greedy() -> None:
    logprobs = log_softmax(table_of(3, 5, 8))
    [beam] = solve(
        BeamSearch(BeamSearchParams(beam_width=1, max_tokens=5), 5, frozenset()), logprobs
    )
    tokens = [0]
    for position in range(5):
        tokens.append(int(np.argmax(logprobs[position, tokens[-1]])))
    assert list(beam.token_ids) == tokens[1:]


def test_never_measures_at_the_present_length_where_longer_is_worse() -> None:
    params = BeamSearchParams(
        beam_width=2, max_tokens=10, early_stopping="never", length_penalty=-1.0
    )
    search = BeamSearch(params, 10, frozenset([0]))
    search.advance([[(1, -0.5), (0, -2.0), (2, -3.0)]])
    search.advance([[(1, -0.1), (0, -2.0), (2, -9.0)], [(0, -9.0), (1, -9.0), (2, -9.0)]])
    assert [beam.token_ids for beam in search.finished] == [(0,), (1, 0)]
    # What runs has -0.6 / 2**-1 now, above the worst of -2.5 / 2**-1; -0.6 / 10**-1 would be below.
    assert not search.done


def test_equals_keep_their_order() -> None:
    params = BeamSearchParams(beam_width=2, max_tokens=2)
    found = solve(BeamSearch(params, 2, frozenset()), np.full((2, 4, 4), -math.log(4)))
    assert [beam.token_ids for beam in found] == [(0, 0), (0, 1)]


def test_rescaled_is_a_softmax_of_logits_over_the_temperature() -> None:
    logits = np.random.RandomState(0).standard_normal(9)
    pairs = list(enumerate(log_softmax(logits).tolist()))
    tokens, values = zip(*beam_search.rescaled(pairs, 0.4), strict=True)
    assert tokens == tuple(range(9))
    assert values == pytest.approx(log_softmax(logits / 0.4).tolist())


class TableEngine:
    """What `run` uses of an engine, over a table of logits."""

    def __init__(
        self,
        table: np.ndarray,
        eos: frozenset[int],
        max_logprobs: int = 20,
        max_model_len: int = 50,
    ) -> None:
        self._logprobs = log_softmax(table)
        config = types.SimpleNamespace(vocab_size=table.shape[-1], max_model_len=max_model_len)
        self._running = types.SimpleNamespace(
            spec=types.SimpleNamespace(config=config),
            options=types.SimpleNamespace(max_logprobs=max_logprobs),
            eos_token_ids=eos,
            tokenizer=None,
        )
        self._serial = itertools.count()
        self.batches: list[list[Prompt]] = []
        self.asked: SamplingParams | None = None

    def _generate(
        self, reading: Reading, params: SamplingParams, use_tqdm: bool
    ) -> list[RequestOutput]:
        assert not use_tqdm
        prompts = reading.all()
        self.batches.append(prompts)
        self.asked = params
        return [self._answer(prompt.token_ids) for prompt in prompts]

    def _answer(self, tokens: list[int]) -> RequestOutput:
        assert self.asked is not None
        count = self.asked.logprobs if self.asked.logprobs != -1 else self._logprobs.shape[-1]
        found = {token: Logprob(value) for token, value in rows(self._logprobs, tokens, count or 0)}
        first = next(iter(found))
        return RequestOutput(
            "", None, tokens, None, [CompletionOutput(0, "", [first], 0.0, [found])], True
        )


def drive(engine: Any, prompts: Sequence[list[int]], **options: Any) -> list[BeamSearchOutput]:
    fields: dict[str, Any] = {"beam_width": 2, "max_tokens": 4} | options
    params = BeamSearchParams(**fields)
    made = [Prompt(None, tokens, b"salt") for tokens in prompts]
    outputs = beam_search.run(engine, made, params, use_tqdm=False)
    assert all(isinstance(output, BeamSearchOutput) for output in outputs)
    return cast("list[BeamSearchOutput]", outputs)


def test_all_prompts_share_each_step() -> None:
    engine = TableEngine(table_of(1, 9, 8), frozenset([5]))
    outputs = drive(engine, [[0, 3], [2]], early_stopping="never")
    assert [len(batch) for batch in engine.batches][:2] == [2, 4]
    assert all(prompt.salt == b"salt" for prompt in engine.batches[1])
    assert [output.prompt_token_ids for output in outputs] == [[0, 3], [2]]
    for output in outputs:
        params = BeamSearchParams(beam_width=2, max_tokens=4, early_stopping="never")
        search = BeamSearch(params, 4, frozenset([5]))
        beams = solve(search, engine._logprobs, tuple(output.prompt_token_ids))
        assert [s.token_ids for s in output.sequences] == [list(b.token_ids) for b in beams]
        assert [s.cumulative_logprob for s in output.sequences] == [b.logprob for b in beams]
        assert [s.score for s in output.sequences] == [search.score(b) for b in beams]
        reasons = ["stop" if b.ended else "length" for b in beams]
        assert [s.finish_reason for s in output.sequences] == reasons
        assert [s.index for s in output.outputs] == [0, 1]
        assert output.finished


def test_a_prompt_that_is_done_is_asked_no_more() -> None:
    table = np.zeros((9, 8, 8), np.float32)
    table[:, 1, 5] = table[:, 1, 6] = 20  # after token 1 both ends are near certain
    engine = TableEngine(table, frozenset([5, 6]))
    done, _ = drive(engine, [[1], [2]], max_tokens=5)
    assert [s.token_ids for s in done.sequences] == [[5], [6]]
    assert [prompt.token_ids[0] for prompt in engine.batches[1]] == [2, 2]


def test_ignore_eos_goes_on() -> None:
    engine = TableEngine(table_of(2, 9, 8), frozenset(range(8)))
    [stopped] = drive(engine, [[0]])
    [ignoring] = drive(engine, [[0]], ignore_eos=True)
    assert [len(s.token_ids) for s in stopped.sequences] == [1, 1]
    assert [len(s.token_ids) for s in ignoring.sequences] == [4, 4]
    assert {s.finish_reason for s in ignoring.sequences} == {"length"}


@pytest.mark.parametrize(("max_logprobs", "asked"), [(20, 3), (3, 3), (2, -1), (0, -1), (-1, 3)])
def test_asks_for_the_whole_vocabulary_only_where_it_must(max_logprobs: int, asked: int) -> None:
    table = table_of(4, 9, 8)
    engine = TableEngine(table, frozenset([5]), max_logprobs)
    [output] = drive(engine, [[0]])
    assert engine.asked is not None
    assert engine.asked.logprobs == asked
    [plain] = drive(TableEngine(table, frozenset([5])), [[0]])
    assert output.sequences == plain.sequences


def test_a_temperature_divides_the_logits() -> None:
    table = table_of(5, 9, 8)
    [hot] = drive(TableEngine(table, frozenset([5])), [[0]], temperature=2.0)
    [scaled] = drive(TableEngine(table / np.float32(2), frozenset([5])), [[0]])
    assert [s.token_ids for s in hot.sequences] == [s.token_ids for s in scaled.sequences]
    assert [s.score for s in hot.sequences] == pytest.approx([s.score for s in scaled.sequences])
    [one] = drive(TableEngine(table, frozenset([5])), [[0]], temperature=1.0)
    [zero] = drive(TableEngine(table, frozenset([5])), [[0]])
    assert one.sequences == zero.sequences


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "Hello"),
        ({"include_stop_str_in_output": True}, "Hello"),
        ({"skip_special_tokens": False}, "Hello"),
        ({"skip_special_tokens": False, "include_stop_str_in_output": True}, "Hello<|end|>"),
    ],
)
def test_text_has_the_end_token_only_if_asked(options: dict[str, Any], text: str) -> None:
    tokenizer = Tokenizer(FIXTURES / "tokenizers" / "byte_level")
    tokens = [5, *tokenizer.encode("Hello", add_special_tokens=False), tokenizer.eos_token_id]
    table = np.zeros((9, 400, 400), np.float32)
    for position, (last, token) in enumerate(itertools.pairwise(tokens)):
        table[position, last, token] = 30
    engine: Any = TableEngine(table, frozenset(tokens[-1:]))
    engine._running.tokenizer = tokenizer
    [output] = drive(engine, [[5]], beam_width=1, max_tokens=9, **options)
    [beam] = output.sequences
    assert (beam.token_ids, beam.finish_reason) == (tokens[1:], "stop")
    assert beam.text == text.replace("<|end|>", tokenizer.token_str(tokens[-1]))


def test_ends_at_the_length_of_the_model() -> None:
    engine = TableEngine(table_of(6, 9, 8), frozenset(), max_model_len=5)
    [output] = drive(engine, [[0, 1, 2]], max_tokens=40)
    assert [len(s.token_ids) for s in output.sequences] == [2, 2]


@pytest.mark.parametrize(
    ("prompt", "options", "error", "message"),
    [
        ([], {}, PromptError, "the prompt is empty"),
        ([0] * 60, {}, PromptError, "max_model_len=50"),
        ([8], {}, PromptError, "token id 8 is out of range"),
        ([0], {"length_penalty": 1e6}, OptionError, "length_penalty=1000000.0"),
        ([0], {"length_penalty": -1e6}, OptionError, "length_penalty=-1000000.0"),
    ],
)
def test_refuses_before_anything_is_queued(
    prompt: list[int], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    engine = TableEngine(table_of(0, 9, 8), frozenset())
    with pytest.raises(error, match=message):
        drive(engine, [[0], prompt], **options)
    assert engine.batches == []


def test_refuses_other_parameters() -> None:
    engine: Any = TableEngine(table_of(0, 9, 8), frozenset())
    params: Any = SamplingParams()
    with pytest.raises(OptionError, match="must be BeamSearchParams"):
        beam_search.run(engine, [Prompt(None, [0])], params, use_tqdm=False)


def test_an_engine_closed_halfway_is_an_error() -> None:
    engine: Any = TableEngine(table_of(0, 9, 8), frozenset())
    aborted = RequestOutput("", None, [0], None, [CompletionOutput(0, "", [], 0.0, [])], True)
    engine._answer = lambda tokens: aborted
    with pytest.raises(EngineClosedError, match="in the middle of a beam search"):
        drive(engine, [[0]])


def test_shows_a_bar_over_steps(capsys: pytest.CaptureFixture[str]) -> None:
    engine: Any = TableEngine(table_of(0, 9, 8), frozenset())
    params = BeamSearchParams(beam_width=2, max_tokens=4)
    beam_search.run(engine, [Prompt(None, [0])], params, use_tqdm=True)
    assert "4/4" in capsys.readouterr().err


GREEDY = SamplingParams(temperature=0, max_tokens=20)
PROMPTS = ["Hello, my name is", "One, two, three"]


def beams(engine: Engine, **options: Any) -> list[BeamSearchOutput]:
    fields: dict[str, Any] = {"beam_width": 3, "max_tokens": 6} | options
    outputs = engine.beam_search(PROMPTS, BeamSearchParams(**fields))
    return cast("list[BeamSearchOutput]", outputs)


def test_one_beam_is_what_generate_gives(engine: Engine) -> None:
    greedy = engine.generate(PROMPTS, GREEDY, use_tqdm=False)
    found = beams(engine, beam_width=1, max_tokens=20)
    for output, alone in zip(found, greedy, strict=True):
        assert output.prompt == alone.prompt
        [beam], [one] = output.sequences, alone.outputs
        assert (beam.token_ids, beam.text) == (one.token_ids, one.text)
        assert beam.finish_reason == one.finish_reason


def test_generate_and_beam_search_are_one(engine: Engine) -> None:
    params = BeamSearchParams(beam_width=3, max_tokens=6)
    found = engine.generate(PROMPTS, params, use_tqdm=False)
    assert [output.outputs for output in found] == [output.outputs for output in beams(engine)]
    assert len(found[0].outputs) == 3
    assert len({output.request_id for output in [*found, *beams(engine)]}) == 4


def test_more_beams_than_log_probabilities_of_a_step(engine: Engine) -> None:
    assert engine.options.max_logprobs < 30
    wide, narrow = (beams(engine, beam_width=width, max_tokens=1) for width in (30, 5))
    for many, few in zip(wide, narrow, strict=True):
        assert len(many.sequences) == 30
        for one, other in zip(many.sequences, few.sequences, strict=False):
            assert one.token_ids == other.token_ids
            assert one.score == pytest.approx(other.score, rel=1e-5)


def test_a_temperature_of_1_changes_nothing_and_another_does(engine: Engine) -> None:
    plain, one, hot = (beams(engine, temperature=t) for t in (0.0, 1.0, 1.5))
    assert [output.outputs for output in plain] == [output.outputs for output in one]
    assert plain[0].sequences[0].score > hot[0].sequences[0].score


@pytest.fixture(scope="module")
def engines() -> Iterator[Callable[[Path, tuple[int, ...]], Engine]]:
    """Makes the engine of a model folder with tokens that end a text, once."""
    made: dict[tuple[Path, tuple[int, ...]], Engine] = {}

    def engine_of(folder: Path, eos: tuple[int, ...]) -> Engine:
        if (folder, eos) not in made:
            made[folder, eos] = Engine(
                folder,
                skip_tokenizer_init=True,
                hf_overrides={"eos_token_id": list(eos)},
                dtype="float32",
                max_num_seqs=32,
                max_num_batched_tokens=256,
                kv_cache_memory_bytes=2**21,
                enforce_eager=True,
                use_tqdm_on_load=False,
            )
        return made[folder, eos]

    yield engine_of
    for engine in made.values():
        engine.close()


def check_against_transformers(engine: Engine, case: dict[str, Any]) -> None:
    outputs = engine.beam_search(case["prompts"], parameters(case))
    found = cast("list[BeamSearchOutput]", outputs)
    for output, beams in zip(found, case["beams"], strict=True):
        assert [s.token_ids for s in output.sequences] == [beam["token_ids"] for beam in beams]
        scores = [beam["score"] for beam in beams]
        assert [s.score for s in output.sequences] == pytest.approx(scores, rel=1e-4)
    assert engine.stats().pages_in_use == 0


def read_cases(name: str) -> list[dict[str, Any]]:
    return json.loads((FIXTURES / "beam" / name).read_text())


def name_of(case: dict[str, Any]) -> str:
    penalty, stopping = case["length_penalty"], case["early_stopping"]
    return f"{case['model']}-{len(case['eos_token_ids'])}-{penalty}-{stopping}"


@pytest.mark.parametrize("case", read_cases("expected.json"), ids=name_of)
def test_engine_agrees_with_transformers(
    engines: Callable[..., Engine], case: dict[str, Any]
) -> None:
    engine = engines(FIXTURES / "models" / case["model"], tuple(case["eos_token_ids"]))
    check_against_transformers(engine, case)


@pytest.mark.parametrize("case", read_cases("stories260k.json"), ids=name_of)
def test_engine_agrees_with_transformers_on_a_trained_model(
    engines: Callable[..., Engine], case: dict[str, Any]
) -> None:
    folder = Path(__file__).parents[3] / "shared" / "models" / case["model"]
    if not folder.is_dir():
        pytest.skip(f"{case['model']} is not beside the repository")
    check_against_transformers(engines(folder, tuple(case["eos_token_ids"])), case)
