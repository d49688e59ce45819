"""The LLaVA of `scripts/make_llava_fixtures.py`, and what was computed of it."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tests.models.conftest import ReferenceModel, encode, load_checkpoint, read_json

from quire.models.llava import Llava, LlavaConfig
from quire.multimodal.clip import ClipImages

FOLDER = Path(__file__).resolve().parent.parent / "fixtures" / "vision" / "llava"
EXPECTED = np.load(FOLDER / "expected.npz")
PICTURES = ("wide", "tall", "square", "tiny")
PROMPTS = ("text", "one", "two", "sizes")
ROWS_OF_PICTURE = 25


def fields() -> dict[str, Any]:
    """The config.json, as a fresh dict."""
    return read_json(FOLDER / "config.json")


@functools.cache
def load() -> ReferenceModel:
    config = LlavaConfig.from_hf(fields())
    return ReferenceModel(config, *load_checkpoint(Llava, config, FOLDER), ())


@functools.cache
def pixels(name: str) -> np.ndarray:
    """A picture as the processor prepares it."""
    processor = ClipImages.from_hf(
        read_json(FOLDER / "preprocessor_config.json"), patch_size=load().config.vision.patch_size
    )
    return processor(Image.fromarray(EXPECTED[f"{name}/picture"]))


def encoded(model: ReferenceModel, names: tuple[str, ...], size: int) -> np.ndarray:
    """Rows of one run of the tower."""
    encoder = Llava.encoders(model.config)["image"]
    inputs = encoder.inputs([pixels(name) for name in names], size)
    return np.asarray(encode(model.graphdef, model.params, inputs))
