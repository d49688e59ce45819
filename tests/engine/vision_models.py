"""Models that see or hear, made by `transformers` or checked against it, with their prompts."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
PROMPTS = {
    "llava": ("text", "one", "two", "sizes"),
    "qwen2_vl": ("text", "one", "two", "many"),
    "phi3_v": ("text", "one", "two"),
}
OPTIONS = {"phi3_v": {"max_model_len": 4096}}
"""Lengths decide between factors of rotation."""


class Cases:
    """The prompts of one model, and the 64 greedy tokens expected of each."""

    def __init__(self, name: str) -> None:
        self.folder = FIXTURES / "vision" / name
        self.options: dict[str, Any] = {"dtype": "float32", **OPTIONS.get(name, {})}
        with np.load(self.folder / "expected.npz") as file:
            self._file = dict(file)
        self.names = PROMPTS[name]

    def array(self, name: str) -> np.ndarray:
        """One of the arrays that the script which made them writes."""
        return self._file[name]

    def picture(self, name: str) -> Image.Image:
        """One of the pictures that prompts name."""
        return Image.fromarray(self._file[f"{name}/picture"])

    def pictures(self, prompt: str) -> list[Image.Image]:
        """Those of a prompt, in order."""
        return [self.picture(str(name)) for name in self._file[f"{prompt}/pictures"]]

    def prompt(self, name: str) -> dict[str, Any]:
        """Token ids with a placeholder for each feature, and the pictures."""
        made: dict[str, Any] = {"prompt_token_ids": self._file[f"{name}/prompt"].tolist()}
        if pictures := self.pictures(name):
            made["multi_modal_data"] = {"image": pictures}
        return made

    def prompts(self) -> list[dict[str, Any]]:
        """All of them."""
        return [self.prompt(name) for name in self.names]

    def greedy(self) -> list[list[int]]:
        """What is expected of each."""
        return [self._file[f"{name}/greedy"].tolist() for name in self.names]


SOUND_PROMPTS = ("text", "one", "two", "three")
RATE = 16000


class SoundCases:
    """The same for a model that hears: Qwen2-Audio, or another."""

    def __init__(self, name: str = "qwen2_audio") -> None:
        self.folder = FIXTURES / "audio" / name
        self.options: dict[str, Any] = {"dtype": "float32"}
        with np.load(self.folder / "expected.npz") as file:
            self._file = dict(file)
        self.names = SOUND_PROMPTS

    def samples(self, name: str) -> np.ndarray:
        """One of the sounds that prompts name, int16 of 16 kHz."""
        return self._file[f"{name}/samples"]

    def prompt(self, name: str) -> dict[str, Any]:
        """Token ids with a placeholder for each feature, and the sounds."""
        made: dict[str, Any] = {"prompt_token_ids": self._file[f"{name}/prompt"].tolist()}
        if names := self._file[f"{name}/clips"].tolist():
            made["multi_modal_data"] = {"audio": [(self.samples(clip), RATE) for clip in names]}
        return made

    def prompts(self) -> list[dict[str, Any]]:
        """All of them."""
        return [self.prompt(name) for name in self.names]

    def greedy(self) -> list[list[int]]:
        """What is expected of each."""
        return [self.tokens(name) for name in self.names]

    def tokens(self, name: str) -> list[int]:
        """What is expected of one."""
        return self._file[f"{name}/greedy"].tolist()
