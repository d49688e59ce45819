"""LLaVA-OneVision of `scripts/make_llava_onevision_fixtures.py`, and what was computed of it."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tests.models.conftest import ReferenceModel, encode, load_checkpoint, read_json

from quire.models.llava_onevision import (
    LlavaOnevision,
    LlavaOnevisionConfig,
    PictureEncoder,
    VideoEncoder,
)
from quire.multimodal.llava_onevision import (
    Frames,
    LlavaOnevisionImages,
    LlavaOnevisionVideos,
    Tiles,
)

FOLDER = Path(__file__).resolve().parent.parent / "fixtures" / "vision" / "llava_onevision"
EXPECTED = np.load(FOLDER / "expected.npz")
PICTURES = ("wide", "tall", "small", "thin", "large")
VIDEOS = ("clip", "film")
PROMPTS = ("text", "one", "two", "video", "mixed", "several")


def fields() -> dict[str, Any]:
    """The config.json, as a fresh dict."""
    return read_json(FOLDER / "config.json")


@functools.cache
def load() -> ReferenceModel:
    config = LlavaOnevisionConfig.from_hf(fields())
    return ReferenceModel(config, *load_checkpoint(LlavaOnevision, config, FOLDER), ())


def images(**changed: Any) -> LlavaOnevisionImages:
    """The processor of pictures, with changed fields."""
    config = load().config
    processor = LlavaOnevisionImages.from_hf(
        read_json(FOLDER / "preprocessor_config.json"),
        side=config.vision.image_size,
        along=config.vision.along,
        pinpoints=config.pinpoints,
        max_squares=config.max_squares,
    )
    return dataclasses.replace(processor, **changed)


def videos() -> LlavaOnevisionVideos:
    """The processor of videos."""
    vision = load().config.vision
    hf = read_json(FOLDER / "video_preprocessor_config.json")
    return LlavaOnevisionVideos.from_hf(hf, side=vision.image_size, along=vision.along)


def picture(name: str) -> Image.Image:
    return Image.fromarray(EXPECTED[f"{name}/picture"])


@functools.cache
def tiles(name: str, tiled: bool = True) -> Tiles:
    """A picture as the processor prepares it."""
    return images(tiled=tiled)(picture(name))


@functools.cache
def frames(name: str) -> Frames:
    """A video as the processor prepares it."""
    return videos()(EXPECTED[f"{name}/frames"])


def picture_encoder() -> PictureEncoder:
    encoder = LlavaOnevision.encoders(load().config)["image"]
    assert isinstance(encoder, PictureEncoder)
    return encoder


def video_encoder() -> VideoEncoder:
    encoder = LlavaOnevision.encoders(load().config)["video"]
    assert isinstance(encoder, VideoEncoder)
    return encoder


def encoded(kind: str, media: list[Any], size: int) -> np.ndarray:
    """Rows of one run of the tower."""
    model = load()
    encoder: Any = {"image": picture_encoder, "video": video_encoder}[kind]()
    return np.asarray(encode(model.graphdef, model.params, encoder.inputs(media, size)))
