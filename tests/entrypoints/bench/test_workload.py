"""Prompts of benchmarks: random ones and those of files."""

import argparse
import json
from pathlib import Path

import pytest

from quire import OptionError, PromptError, QuireError
from quire.entrypoints.bench import workload
from quire.entrypoints.bench.workload import Ask, Lengths


def test_random_ids_depend_on_the_seed_alone() -> None:
    first, again, other = (workload.random_ids(9, Lengths(5, 3), 50, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert all(len(ask.prompt) == 5 and ask.output_len == 3 for ask in first)
    assert len({tuple(ask.prompt) for ask in first}) == 9


def test_random_ids_cover_the_vocabulary() -> None:
    asks = workload.random_ids(50, Lengths(40, 1), 7, 0)
    assert {token for ask in asks for token in ask.prompt} == set(range(7))


@pytest.mark.parametrize("ratio", [0.25, 0.999])
def test_lengths_are_within_the_ratio(ratio: float) -> None:
    asks = workload.random_ids(400, Lengths(20, 8, ratio), 9, 0)
    inputs, outputs = {len(ask.prompt) for ask in asks}, {ask.output_len for ask in asks}
    for length, found in ((20, inputs), (8, outputs)):
        low, high = max(1, round(length * (1 - ratio))), round(length * (1 + ratio))
        assert found == set(range(low, high + 1))


def test_random_words_are_as_many_as_asked() -> None:
    asks = workload.random_words(3, Lengths(6, 2), 0)
    assert [len(str(ask.prompt).split()) for ask in asks] == [6, 6, 6]


def write(path: Path, *lines: object) -> str:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts))
    return str(path)


def test_a_dataset_is_read_in_order(tmp_path: Path) -> None:
    lines = ({"prompt": "a", "output_len": 4}, "", {"prompt": [1, 2], "id": "x"})
    path = write(tmp_path / "x", *lines)
    assert workload.read_dataset(path, 9, None) == [Ask("a", 4), Ask([1, 2], 9)]
    assert workload.read_dataset(path, 9, 1) == [Ask("a", 4)]
    with pytest.raises(OptionError, match=f"--num-prompts 3 is more than the 2 of {path}"):
        workload.read_dataset(path, 9, 3)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ([1], r"\[1\] must be a JSON object"),
        ({"output_len": 3}, "must be a JSON object such as"),
        ({"prompt": ""}, "prompt='' must be text or a list of token ids"),
        ({"prompt": [True]}, r"prompt=\[True\] must be"),
        ({"prompt": 5}, "prompt=5 must be"),
        ({"prompt": "a", "output_len": 0}, "output_len=0 must be a whole number, 1 or more"),
        ({"prompt": "a", "output_len": 1.5}, "output_len=1.5 must be"),
        ({"prompt": "a", "outputlen": 1}, "'outputlen'.* mean 'output_len'"),
    ],
)
def test_a_bad_line_is_an_error_with_its_number(tmp_path: Path, line: object, message: str) -> None:
    path = write(tmp_path / "x", {"prompt": "fine"}, "", line)
    with pytest.raises(PromptError, match=f"x, line 3: .*{message}"):
        workload.read_dataset(path, 9, None)


def test_a_dataset_without_lines_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(QuireError, match="x has no lines"):
        workload.read_dataset(write(tmp_path / "x", "", " "), 9, None)


def test_a_dataset_decides_its_lengths() -> None:
    args = argparse.Namespace(dataset=None, num_prompts=None, input_len=7, range_ratio=None)
    workload.settle(args)
    assert (args.num_prompts, args.input_len, args.range_ratio) == (64, 7, 0.0)
    args = argparse.Namespace(dataset="x", num_prompts=None, input_len=None, range_ratio=0.5)
    with pytest.raises(OptionError, match="--range-ratio 0.5 is for random prompts"):
        workload.settle(args)
    args.range_ratio = None
    workload.settle(args)
    assert args.num_prompts is None


def test_a_chat_takes_text_only() -> None:
    workload.texts_only([Ask("a", 1)])
    with pytest.raises(PromptError, match="prompt 2 is token ids"):
        workload.texts_only([Ask("a", 1), Ask([1], 1)])
