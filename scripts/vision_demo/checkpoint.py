"""The vision demo's shape, as its config gives it, and its folder in Hugging Face layout."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import safetensors.flax

from quire.models.llava import Llava, LlavaConfig
from quire.multimodal.clip import ClipImages

from .tokenizer import SPECIAL_TOKENS

Params = dict[str, jax.Array]

FOLDER = Path(__file__).resolve().parents[2] / "models" / "vision_demo"
"""Where the model is shipped. Its JSON files but `tokenizer.json` are written by hand."""
CONFIG = LlavaConfig.from_hf(json.loads((FOLDER / "config.json").read_text()))
EDGE, PATCH = CONFIG.vision.image_size, CONFIG.vision.patch_size
PROCESSOR = ClipImages.from_hf(
    json.loads((FOLDER / "preprocessor_config.json").read_text()), patch_size=PATCH
)
PAD_ID, END_ID, IMAGE_ID = range(len(SPECIAL_TOKENS))


def make_folder(folder: Path) -> None:
    """Makes a copy of FOLDER without its weights, unless it is FOLDER itself."""
    if folder.resolve() != FOLDER:
        weights = shutil.ignore_patterns("*.safetensors")
        shutil.copytree(FOLDER, folder, ignore=weights, dirs_exist_ok=True)


def save(folder: Path, params: Params) -> None:
    """Writes the weights in bfloat16, under the names that they have in LLaVA-1.5.

    The norm that CLIP has behind its tower is written as one that was never trained: LLaVA does not
    use it, but transformers misses it.
    """
    tensors = {}
    for piece in Llava.checkpoint_map(CONFIG).pieces:
        value = params[piece.param][piece.index].astype(jnp.bfloat16)
        tensors[published(piece.tensor)] = value.reshape(tensor_shape(piece.tensor, value.shape))
    norm = published("vision_tower.post_layernorm")
    tensors[f"{norm}.weight"] = jnp.ones(CONFIG.vision.hidden_size, jnp.bfloat16)
    tensors[f"{norm}.bias"] = jnp.zeros(CONFIG.vision.hidden_size, jnp.bfloat16)
    path = folder / "model.safetensors"
    safetensors.flax.save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)


def published(name: str) -> str:
    """A tensor's name in files of LLaVA-1.5, of its name in `checkpoint_map`."""
    if name.startswith("vision_tower."):
        return name.replace("vision_tower.", "vision_tower.vision_model.", 1)
    return name if name.startswith("multi_modal_projector.") else f"language_model.{name}"


def tensor_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in a file of a part of a parameter: heads are not a dimension of their own."""
    if name.endswith("patch_embedding.weight"):
        return shape[0], 3, PATCH, PATCH
    return (-1,) if name.endswith(".bias") or len(shape) == 1 else (-1, shape[-1])
