"""Requests with pictures, in small: what the line of each model says."""

import importlib.util
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from quire.engine.model import find_spec
from quire.engine.options import make_options

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> Any:
    """benchmarks/images.py, which finds its neighbours."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("benchmarks_images", BENCHMARKS / "images.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses look
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "parameters", "tokens"),
    [("llava-1.5-7b", 7_050_828_800, 576), ("qwen2-vl-2b", 2_208_985_600, 35 * 35)],
)
def test_shapes_are_those_of_the_published_models(
    images: Any, name: str, parameters: int, tokens: int
) -> None:
    """LLaVA's without the tower's last layer and norm, which nothing uses."""
    workload = images.WORKLOADS[name]
    options = images.OPTIONS | workload.options
    spec = find_spec(make_options(str(images.make_folder(workload)), **options))
    assert sum(math.prod(shape.shape) for shape in spec.shapes.values()) == parameters
    assert spec.media is not None
    images = spec.media.kinds["image"]
    assert images.processor.num_tokens(*workload.picture) == tokens
    assert images.token not in workload.ids


@pytest.mark.slow
def test_tiny_models(
    images: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["images.py", "--tiny", "--runs", "2", "--profile"]
    monkeypatch.setattr(sys, "argv", argv)
    assert images.main() == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["model"] for line in lines] == ["llava-1.5-7b, tiny", "qwen2-vl-2b, tiny"]
    assert [line["picture_tokens"] for line in lines] == [25, 12]
    for line in lines:
        assert (line["programs_compiled"], line["repeated"]["encoded"]) == (0, 0)
        for figures in (line, line["repeated"]):
            assert len(figures["s"]) == 2
            assert figures["pictures_per_s"] == pytest.approx(4 / figures["median_s"], rel=0.05)
            assert figures["out_tok_s"] == pytest.approx(32 / figures["median_s"], rel=0.05)


@pytest.mark.slow
def test_features_are_kept_only_where_they_are_to_be(images: Any) -> None:
    workload = images.tiny("llava")
    with images.make_engine(workload) as engine:
        features = engine._running.features
        prompts = workload.prompts(engine._running.media.spec.kinds["image"].token)
        assert len({prompt["multi_modal_data"]["image"].tobytes() for prompt in prompts}) == 4
        encoded = []
        for keep in (False, False, True):
            queried, hits = features.queried, features.hits
            images.run(engine, prompts, 2, keep=keep)
            encoded.append(features.queried - queried - (features.hits - hits))
        assert encoded == [4, 4, 0]
