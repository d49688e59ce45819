"""The line a benchmark prints."""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import pytest

from quire import OptionError, __version__
from quire.entrypoints.bench import report


def test_a_record_keeps_what_was_given_and_no_secret() -> None:
    args = argparse.Namespace(
        run=None, benchmark="serve", model=None, output="x", api_key="k", dataset=None, seed=0
    )
    assert report.record(args, report.NO_MACHINE, {"median_s": 1.5}) == {
        "benchmark": "serve",
        "model": "demo",
        "conditions": {**report.NO_MACHINE, "quire": __version__, "options": {"seed": 0}},
        "median_s": 1.5,
    }


def test_infinity_is_a_word() -> None:
    args = argparse.Namespace(benchmark="serve", model="m", request_rate=math.inf)
    made = report.record(args, {}, {})
    assert made["conditions"]["options"] == {"request_rate": "inf"}
    json.dumps(made, allow_nan=False)


def test_a_line_is_printed_and_appended(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    report.check_output(str(path))
    for number in (1, 2):
        report.write({"n": number}, str(path))
    assert capsys.readouterr().out == path.read_text() == '{"n": 1}\n{"n": 2}\n'
    report.write({"n": 3}, None)
    with pytest.raises(OptionError, match=f"--output {tmp_path} cannot be written"):
        report.check_output(str(tmp_path))


@pytest.mark.parametrize("percent", [0, 10, 50, 90, 99, 100])
@pytest.mark.parametrize("count", [1, 2, 3, 100])
def test_percentiles_are_those_of_numpy(count: int, percent: float) -> None:
    values = np.random.default_rng(count).normal(size=count)
    expected = float(np.percentile(values, percent))
    assert report.percentile(values.tolist(), percent) == pytest.approx(expected)
