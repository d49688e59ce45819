"""Requests with pictures, in small: what the line of each model says."""

import importlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quire.engine.model import find_spec
from quire.engine.options import make_options

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """One of the benchmarks, which finds its neighbours."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module(name)


@pytest.mark.parametrize(
    ("benchmark", "name", "parameters", "tokens"),
    [
        ("images", "llava-1.5-7b", 7_050_828_800, 576),
        ("images", "qwen2-vl-2b", 2_208_985_600, 35 * 35),
        ("video_audio", "qwen2-vl-7b", 8_291_375_616, 8 * 17 * 23),
        ("video_audio", "qwen2-audio-7b", 8_397_094_912, 250),
    ],
)
def test_shapes_are_those_of_the_published_models(
    benchmark: str, name: str, parameters: int, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LLaVA's without the tower's last layer and norm, which nothing uses."""
    workload = load(benchmark, monkeypatch).WORKLOADS[name]
    media = load("media_workload", monkeypatch)
    options = media.OPTIONS | workload.options
    spec = find_spec(make_options(str(media.make_folder(workload)), **options))
    assert sum(math.prod(shape.shape) for shape in spec.shapes.values()) == parameters
    assert spec.media is not None
    known = spec.media.kinds[workload.kind]
    decoded = known.kind.decode(workload.medium(np.random.default_rng(0)), known.processor)
    assert known.processor.num_tokens(*known.kind.size(decoded)) == tokens
    assert known.token not in workload.ids


@pytest.mark.slow
@pytest.mark.parametrize(
    ("benchmark", "nouns", "features"),
    [
        ("images", ("pictures", "pictures"), [25, 16]),
        ("video_audio", ("videos", "sounds"), [36, 25]),
    ],
)
def test_tiny_models(
    benchmark: str,
    nouns: tuple[str, str],
    features: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module, media = load(benchmark, monkeypatch), load("media_workload", monkeypatch)
    monkeypatch.setattr(sys, "argv", [f"{benchmark}.py", "--tiny", "--runs", "2", "--profile"])
    assert media.main(benchmark, "", module.WORKLOADS, module.SMALL) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["model"] for line in lines] == [f"{name}, tiny" for name in module.WORKLOADS]
    assert [line["features"] for line in lines] == features
    for line, noun in zip(lines, nouns, strict=True):
        assert (line["programs_compiled"], line["repeated"]["encoded"]) == (0, 0)
        for figures in (line, line["repeated"]):
            assert len(figures["s"]) == 2
            assert figures[f"{noun}_per_s"] == pytest.approx(4 / figures["median_s"], rel=0.05)
            assert figures["out_tok_s"] == pytest.approx(32 / figures["median_s"], rel=0.05)


@pytest.mark.slow
def test_features_are_kept_only_where_they_are_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    media = load("media_workload", monkeypatch)
    workload = load("images", monkeypatch).WORKLOADS["llava-1.5-7b"]
    workload = media.tiny(workload, "vision/llava", {})
    with media.make_engine(workload) as engine:
        features = engine._running.replicas[0].features
        prompts = workload.prompts(engine._running.media.spec.kinds["image"].token)
        assert len({prompt["multi_modal_data"]["image"].tobytes() for prompt in prompts}) == 4
        encoded = []
        for keep in (False, False, True):
            queried, hits = features.queried, features.hits
            media.run(engine, prompts, 2, keep=keep)
            encoded.append(features.queried - queried - (features.hits - hits))
        assert encoded == [4, 4, 0]
