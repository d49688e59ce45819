"""The vision demo's shape, as its config gives it, and its weights in LLaVA-NeXT-Video's names."""

import json
from pathlib import Path

import jax.numpy as jnp

from quire.models.llava_next_video import LlavaNextVideo, LlavaNextVideoConfig
from quire.multimodal.llava_next_video import LlavaNextImages, LlavaNextVideos

from ..media_demo import folder
from ..media_demo.folder import Params
from .dialogues import IMAGE, PAD, SPECIAL, VIDEO

FOLDER = Path(__file__).resolve().parents[2] / "models" / "vision_demo"
"""Where the model is shipped. Its JSON files but `tokenizer.json` are written by hand."""
CONFIG = LlavaNextVideoConfig.from_hf(json.loads((FOLDER / "config.json").read_text()))
EDGE, PATCH = CONFIG.vision.image_size, CONFIG.vision.patch_size
PICTURES = LlavaNextImages.from_hf(
    json.loads((FOLDER / "preprocessor_config.json").read_text()),
    side=EDGE,
    patch_size=PATCH,
    pinpoints=CONFIG.pinpoints,
)
CLIPS = LlavaNextVideos.from_hf(
    json.loads((FOLDER / "video_preprocessor_config.json").read_text()),
    side=EDGE,
    patch_size=PATCH,
    stride=CONFIG.stride,
)
PAD_ID, IMAGE_ID, VIDEO_ID = map(SPECIAL.index, (PAD, IMAGE, VIDEO))


def save(path: Path, params: Params) -> None:
    """Writes the weights in bfloat16 into the folder.

    The norm that CLIP has behind its tower is written as one that was never trained: LLaVA does not
    use it, but transformers misses it.
    """
    tensors = folder.tensors_of(LlavaNextVideo, CONFIG, params, published, shape)
    norm = published("vision_tower.post_layernorm")
    tensors[f"{norm}.weight"] = jnp.ones(CONFIG.vision.hidden_size, jnp.bfloat16)
    tensors[f"{norm}.bias"] = jnp.zeros(CONFIG.vision.hidden_size, jnp.bfloat16)
    folder.save(path, tensors)


def published(name: str) -> str:
    """A tensor's name in files of LLaVA-NeXT-Video, of its name in `checkpoint_map`."""
    if name.startswith("vision_tower."):
        return name.replace("vision_tower.", "vision_tower.vision_model.", 1)
    kept = ("multi_modal_projector.", "image_newline")
    return name if name.startswith(kept) else f"language_model.{name}"


def shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in a file of a part of a parameter."""
    if name.endswith("patch_embedding.weight"):
        return shape[0], 3, PATCH, PATCH
    return folder.flat_heads(name, shape)
