"""Models whose media need libraries that are not installed."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from quire import Engine, ModelConfigError, PromptError, SamplingParams, UnsupportedModelError
from tests.engine.vision_models import Cases, SoundCases

FEW = SamplingParams(temperature=0, max_tokens=2)
MARKER = "<|vision_start|><|image_pad|><|vision_end|>"


def without(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where what decodes a kind of media is not installed."""
    monkeypatch.setitem(sys.modules, f"quire.multimodal.{name}", None)
    monkeypatch.delattr(f"quire.multimodal.{name}", raising=False)


def test_pictures_need_nothing_that_is_for_videos(monkeypatch: pytest.MonkeyPatch) -> None:
    without("videos", monkeypatch)
    picture = {"prompt": MARKER, "multi_modal_data": {"image": Image.new("RGB", (32, 32))}}
    video = {"prompt": MARKER, "multi_modal_data": {"video": np.zeros((2, 32, 32, 3), np.uint8)}}
    with Engine(Cases("qwen2_vl").folder, enforce_eager=True) as engine:
        assert len(engine.generate(picture, FEW, use_tqdm=False)) == 1
        with pytest.raises(PromptError, match=r"videos, which .* pip install 'quire\[video\]'"):
            engine.generate(video, FEW)


def test_a_model_that_takes_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    without("sounds", monkeypatch)
    with pytest.raises(UnsupportedModelError, match=r"sounds, .* pip install 'quire\[audio\]'"):
        Engine(SoundCases().folder)


def test_a_malformed_file_is_no_option(tmp_path: Path) -> None:
    for path in SoundCases().folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(ModelConfigError, match="has no preprocessor_config.json"):
        Engine(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"feature_size": 0}')
    with pytest.raises(ModelConfigError, match="'feature_size'"):
        Engine(tmp_path)
