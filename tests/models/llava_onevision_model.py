"""LLaVA-OneVision of `scripts/make_llava_onevision_fixtures.py`, and what was computed of it."""

import dataclasses
import functools
from typing import Any

from PIL import Image
from tests.models.square_models import SquareModel

from quire.models.llava_onevision import VideoEncoder
from quire.models.squares import TileEncoder
from quire.multimodal.llava_onevision import Frames, LlavaOnevisionImages, LlavaOnevisionVideos
from quire.multimodal.tiles import Tiles

ONEVISION = SquareModel("llava_onevision")
FOLDER, EXPECTED = ONEVISION.folder, ONEVISION.expected
PICTURES = ("wide", "tall", "small", "thin", "large")
VIDEOS = ("clip", "film")
PROMPTS = ("text", "one", "two", "video", "mixed", "several")

fields, encoded = ONEVISION.fields, ONEVISION.encoded


def load() -> Any:
    return ONEVISION.model


def images(**changed: Any) -> LlavaOnevisionImages:
    """The processor of pictures, with changed fields."""
    processor = ONEVISION.processor("image")
    assert isinstance(processor, LlavaOnevisionImages)
    return dataclasses.replace(processor, **changed)


def videos() -> LlavaOnevisionVideos:
    """The processor of videos."""
    processor = ONEVISION.processor("video")
    assert isinstance(processor, LlavaOnevisionVideos)
    return processor


def picture(name: str) -> Image.Image:
    return ONEVISION.picture(name)


@functools.cache
def tiles(name: str, tiled: bool = True) -> Tiles:
    """A picture as the processor prepares it."""
    return images(tiled=tiled)(picture(name))


@functools.cache
def frames(name: str) -> Frames:
    """A video as the processor prepares it."""
    return videos()(EXPECTED[f"{name}/frames"])


def picture_encoder() -> TileEncoder:
    encoder = ONEVISION.encoders["image"]
    assert isinstance(encoder, TileEncoder)
    return encoder


def video_encoder() -> VideoEncoder:
    encoder = ONEVISION.encoders["video"]
    assert isinstance(encoder, VideoEncoder)
    return encoder
