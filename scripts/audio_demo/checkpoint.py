"""The audio demo's shape, as its config gives it, and its weights as Qwen2-Audio names them."""

import json
from pathlib import Path

from quire.models.qwen2_audio import Qwen2Audio, Qwen2AudioConfig
from quire.multimodal.log_mel import LogMel

from ..media_demo import folder
from ..media_demo.folder import Params
from .dialogues import PAD, SOUND, SPECIAL

FOLDER = Path(__file__).resolve().parents[2] / "models" / "audio_demo"
"""Where the model is shipped. Its JSON files but `tokenizer.json` are written by hand."""
CONFIG = Qwen2AudioConfig.from_hf(json.loads((FOLDER / "config.json").read_text()))
LOG_MEL = LogMel.from_hf(json.loads((FOLDER / "preprocessor_config.json").read_text()))
PAD_ID, SOUND_ID = SPECIAL.index(PAD), SPECIAL.index(SOUND)


def save(path: Path, params: Params) -> None:
    """Writes the weights in bfloat16 into the folder."""
    folder.save(path, folder.tensors_of(Qwen2Audio, CONFIG, params, published, shape))


def published(name: str) -> str:
    """A tensor's name in files of Qwen2-Audio, of its name in `checkpoint_map`."""
    if name.startswith(("audio_tower.", "multi_modal_projector.")):
        return name
    return f"language_model.{name}"


def shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in a file of a part of a parameter; convolutions have three taps a channel."""
    if ".conv" in name and name.endswith(".weight"):
        return shape[0], -1, 3
    return folder.flat_heads(name, shape)
