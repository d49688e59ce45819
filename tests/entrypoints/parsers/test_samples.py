"""Every format's samples, whole and in all kinds of pieces: the same message each time."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings, strategies as st
from tests.entrypoints.parsers.samples import (
    deepseek_v3,
    granite,
    hermes,
    json_calls,
    llama3_json,
    mistral,
    phi4_mini_json,
    pythonic,
    qwen3_coder,
    reasoning,
)
from tests.entrypoints.parsers.samples.sample import Sample, message, pieces

from quire.entrypoints.parsers import (
    REASONING_PARSERS,
    TOOL_PARSERS,
    Chain,
    NamedCallParser,
    Parser,
    RequiredCallsParser,
    parse_whole,
    reasoning_parser,
    tool_parser,
)

TOOL_SAMPLES = {
    "deepseek_v3": deepseek_v3.SAMPLES,
    "granite": granite.SAMPLES,
    "hermes": hermes.SAMPLES,
    "llama3_json": llama3_json.SAMPLES,
    "llama4_json": llama3_json.SAMPLES,
    "llama4_pythonic": pythonic.LLAMA4,
    "mistral": mistral.SAMPLES,
    "phi4_mini_json": phi4_mini_json.SAMPLES,
    "pythonic": pythonic.SAMPLES,
    "qwen3_coder": qwen3_coder.SAMPLES,
    "qwen3_xml": qwen3_coder.SAMPLES,
}
REASONING_SAMPLES = {"deepseek_r1": reasoning.DEEPSEEK_R1, "qwen3": reasoning.QWEN3}


def chain() -> Parser:
    return Chain(reasoning_parser("qwen3")(), tool_parser("hermes")([]))


def tools(name: str) -> Callable[[], Parser]:
    return lambda: tool_parser(name)(qwen3_coder.TOOLS)


FORMATS: dict[str, tuple[Callable[[], Parser], list[Sample]]] = {
    **{name: (tools(name), samples) for name, samples in TOOL_SAMPLES.items()},
    **{name: (reasoning_parser(name), s) for name, s in REASONING_SAMPLES.items()},
    "required": (lambda: RequiredCallsParser([]), json_calls.REQUIRED),
    "named": (lambda: NamedCallParser([], "chosen"), json_calls.NAMED),
    "chain": (chain, reasoning.CHAINED),
}
ALL = [(make, sample) for make, samples in FORMATS.values() for sample in samples]


@pytest.mark.parametrize(
    ("make", "sample"),
    [
        pytest.param(make, sample, id=f"{name}: {sample.what}")
        for name, (make, samples) in FORMATS.items()
        for sample in samples
    ],
)
def test_a_sample_is_read_the_same_in_any_pieces(
    make: Callable[[], Parser], sample: Sample
) -> None:
    expected = sample.message
    assert message(make(), [sample.text]) == expected
    assert message(make(), pieces(sample.text, 8)) == expected
    assert message(make(), pieces(sample.text, 1)) == expected
    assert parse_whole(make(), sample.text) == (expected.content, expected.calls)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_random_cuts_change_nothing(data: st.DataObject) -> None:
    make, sample = data.draw(st.sampled_from(ALL))
    places = st.lists(st.integers(0, len(sample.text)), max_size=12)
    assert message(make(), cut(sample.text, data.draw(places))) == sample.message


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_text_that_was_never_foreseen_is_read_the_same_in_any_pieces(data: st.DataObject) -> None:
    name, (make, samples) = data.draw(st.sampled_from(list(FORMATS.items())))
    text = "".join(data.draw(st.lists(st.sampled_from(fragments(samples)), max_size=12)))
    whole = message(make(), [text])
    assert message(make(), pieces(text, 1)) == whole
    assert message(make(), pieces(text, 3)) == whole
    if name in TOOL_SAMPLES and not whole.calls:
        assert (whole.content or "") == text


def cut(text: str, places: list[int]) -> list[str]:
    ends = [*sorted(places), len(text)]
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def fragments(samples: list[Sample]) -> list[str]:
    """Samples, their halves and thirds, and characters that may be syntax."""
    texts = [sample.text for sample in samples]
    halves = [text[: len(text) // 2] for text in texts] + [text[len(text) // 2 :] for text in texts]
    return [*texts, *halves, *'{}[]()<>"\\,:;=\n 1a', "<tool_call>", "</think>"]


def test_every_parser_has_samples() -> None:
    assert set(TOOL_PARSERS) == set(TOOL_SAMPLES)
    assert set(REASONING_PARSERS) == set(REASONING_SAMPLES)
    assert all(len(samples) >= 6 for samples in TOOL_SAMPLES.values())
