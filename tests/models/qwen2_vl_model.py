"""The fixture of Qwen2-VL: the checkpoint as the project loads it, and what is expected of it."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tests.models.conftest import encode, load_checkpoint, read_json

from quire.models.qwen2_vl import Qwen2VL, Qwen2VLConfig, Qwen2VLEncoder
from quire.multimodal.pixels import Normalization

FOLDER = Path(__file__).resolve().parent.parent / "fixtures" / "vision" / "qwen2_vl"
PICTURES = ("wide", "tall", "small", "thin")
VIDEOS = ("long", "short")
"""Those that the processor makes."""
PROMPTS = ("text", "one", "two", "many", "clip", "mixed")


@dataclasses.dataclass(frozen=True)
class Picture:
    """Patches, as the tower takes them, and the features that `transformers` computes."""

    patches: np.ndarray
    factors: np.ndarray
    terms: np.ndarray
    grid: tuple[int, int, int]
    features: np.ndarray


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt with its pictures, and what `transformers` computes."""

    pictures: tuple[Picture, ...]
    tokens: np.ndarray
    positions: np.ndarray
    """Int32 [3, T]."""
    delta: int
    logits: np.ndarray
    greedy: np.ndarray

    @property
    def layout(self) -> list[tuple[int, tuple[int, int, int]]]:
        """Where its pictures begin, and their grids after merging, for `mrope.positions`."""
        at = np.flatnonzero(np.isin(self.tokens, (6, 7)))
        starts = at[np.diff(at, prepend=-2) > 1].tolist()
        grids = [(t, h // 2, w // 2) for t, h, w in (picture.grid for picture in self.pictures)]
        return list(zip(starts, grids, strict=True))


@dataclasses.dataclass(frozen=True)
class Model:
    """The checkpoint as the project loads it."""

    config: Qwen2VLConfig
    graphdef: Any
    params: dict[str, jax.Array]

    @property
    def encoder(self) -> Qwen2VLEncoder:
        return Qwen2VL.encoders(self.config)["image"]

    def encode(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """Features of a run of the tower."""
        return np.asarray(encode(self.graphdef, self.params, inputs))


@functools.cache
def load_model(dtype: Any = jnp.float32) -> Model:
    config = Qwen2VLConfig.from_hf(read_json(FOLDER / "config.json"))
    return Model(config, *load_checkpoint(Qwen2VL, config, FOLDER, dtype))


@functools.cache
def expected() -> dict[str, np.ndarray]:
    files = FOLDER / "expected.npz", FOLDER / "expected_video.npz"
    return {name: array for file in files for name, array in np.load(file).items()}


def load_picture(name: str) -> Picture:
    values, grid, features = (expected()[f"{name}/{f}"] for f in ("patches", "grid", "features"))
    normalize = Normalization()
    levels = normalize.factors, normalize.terms
    factors, terms = (np.repeat(x, values.shape[1] // 3) for x in levels)
    pixels = (values - terms) / factors
    patches = np.round(pixels).astype(np.uint8)
    return Picture(patches, *levels, (int(grid[0]), int(grid[1]), int(grid[2])), features)


def load_prompt(name: str) -> Prompt:
    fields = ("prompt", "positions", "logits", "greedy")
    tokens, positions, logits, greedy = (expected()[f"{name}/{field}"] for field in fields)
    pictures = tuple(load_picture(picture) for picture in expected()[f"{name}/pictures"])
    return Prompt(pictures, tokens, positions, int(expected()[f"{name}/delta"]), logits, greedy)
