"""Fixture models whose towers see squares, and what `transformers` computed of them."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tests.models.conftest import ReferenceModel, encode, load_checkpoint, read_json

from quire.models.registry import resolve
from quire.multimodal.processors import FORMATS

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures" / "vision"


class SquareModel:
    """A model, its processors and encoders; all are made when they are needed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = FIXTURES / name
        self.expected = np.load(self.folder / "expected.npz")

    def fields(self) -> dict[str, Any]:
        """The config.json, as a fresh dict."""
        return read_json(self.folder / "config.json")

    @functools.cached_property
    def cls(self) -> type[Any]:
        return resolve(self.fields())

    @functools.cached_property
    def model(self) -> ReferenceModel:
        config = self.cls.config_class.from_hf(self.fields())
        return ReferenceModel(config, *load_checkpoint(self.cls, config, self.folder), ())

    @functools.cached_property
    def encoders(self) -> dict[str, Any]:
        """By kind."""
        return self.cls.encoders(self.model.config)

    def processor(self, kind: str) -> Any:
        """As the model's files say."""
        name = {"image": "preprocessor_config", "video": "video_preprocessor_config"}[kind]
        [architecture] = self.fields()["architectures"]
        hf = read_json(self.folder / f"{name}.json")
        return FORMATS[architecture][kind].load(hf, self.model.config)

    def kind(self, name: str) -> str:
        """Of a medium."""
        return "video" if f"{name}/frames" in self.expected else "image"

    def names(self, prompt: str) -> list[str]:
        """What a prompt shows, in order."""
        return self.expected[f"{prompt}/media"].tolist()

    def picture(self, name: str) -> Image.Image:
        return Image.fromarray(self.expected[f"{name}/picture"])

    def media(self, prompt: str) -> dict[str, Any]:
        """What a prompt shows, as engines take it."""
        by_kind: dict[str, Any] = {"image": [], "video": []}
        for name in self.names(prompt):
            kind = self.kind(name)
            given = self.picture(name) if kind == "image" else self.expected[f"{name}/frames"]
            by_kind[kind].append(given)
        return by_kind

    def prepared(self, name: str) -> Any:
        """A picture or video as its processor prepares it."""
        if self.kind(name) == "image":
            return self.processor("image")(self.picture(name))
        return self.processor("video")(self.expected[f"{name}/frames"])

    def encoded(self, kind: str, media: list[Any], size: int) -> np.ndarray:
        """Rows of one run of the tower."""
        inputs = self.encoders[kind].inputs(media, size)
        return np.asarray(encode(self.model.graphdef, self.model.params, inputs))

    def shown(
        self, prompt: str, rows: list[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens of a prompt, rows of its media and one of no use, and the row of each token."""
        tokens, config = self.expected[f"{prompt}/prompt"], self.model.config
        useless = np.full((1, config.hidden_size), 9, np.float32)
        joined = np.concatenate([*rows, useless])
        kinds = [token for name, token in vars(config).items() if name.endswith("_token")]
        here = np.isin(tokens, kinds)
        assert here.sum() == len(joined) - 1
        return tokens, joined, np.where(here, np.cumsum(here) - 1, len(joined))
