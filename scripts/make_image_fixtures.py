"""Makes tests/fixtures/images.npz: what torch and `transformers` make of small random pictures.

Run by hand: `python scripts/make_image_fixtures.py`; needs torch, torchvision and transformers.
Arrays of one case begin with its name: `picture` uint8 [H, W, 3], and what is expected of it. Large
ones are thinned out: `clip336` and `whole` keep every 17th pixel along height and width, `patches`
every 11th value of a patch.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, functional
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

OUTPUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "images.npz"
SIZES = ((61, 83), (83, 61), (40, 40), (9, 120), (130, 34))
EVERY = 17


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """Waves with noise, uint8 [H, W, 3]."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (3 + c + seed) + y / (5 + c)) * 90 + 128 for c in range(3)]
    return np.clip(np.stack(waves, -1) + random.normal(0, 25, (height, width, 3)), 0, 255).astype(
        np.uint8
    )


def clip(image: Image.Image, edge: int) -> np.ndarray:
    """Pixel values [3, edge, edge]."""
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": edge}, crop_size={"height": edge, "width": edge}
    )
    return np.asarray(processor(image, return_tensors="np")["pixel_values"])[0]


def qwen2_vl(image: Image.Image, lower: int, upper: int) -> tuple[np.ndarray, np.ndarray]:
    """Patches [N, 1176] and the grid [3]."""
    processor = Qwen2VLImageProcessorPil(min_pixels=lower, max_pixels=upper)
    out = processor(image, return_tensors="np")
    return np.asarray(out["pixel_values"]), np.asarray(out["image_grid_thw"])[0]


def whole(image: Image.Image, rows: int, columns: int) -> np.ndarray:
    """The thumbnail [3, 336, 336] of a picture that is stretched to whole squares first."""
    size = [rows * 336, columns * 336]
    large = functional.resize(image, size, InterpolationMode.BILINEAR)
    pixels = functional.to_tensor(large)
    pixels = functional.normalize(
        pixels, [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    )
    return torch.nn.functional.interpolate(pixels[None], (336, 336), mode="bicubic")[0].numpy()


def main() -> None:
    arrays: dict[str, np.ndarray] = {}
    for seed, (height, width) in enumerate(SIZES):
        array = picture(height, width, seed)
        image, name = Image.fromarray(array), f"{height}x{width}"
        arrays[f"{name}/picture"] = array
        arrays[f"{name}/clip28"] = clip(image, 28)
        arrays[f"{name}/clip336"] = clip(image, 336)[:, ::EVERY, ::EVERY]
        for lower, upper in ((56 * 56, 28 * 28 * 1280), (28 * 28 * 12, 28 * 28 * 14), (784, 2352)):
            patches, grid = qwen2_vl(image, lower, upper)
            arrays[f"{name}/qwen{lower}-{upper}/patches"] = patches[:, ::11]
            arrays[f"{name}/qwen{lower}-{upper}/grid"] = grid
    for rows, columns in ((1, 1), (2, 2), (1, 4), (4, 3)):
        image = Image.fromarray(arrays["61x83/picture"])
        arrays[f"whole/{rows}x{columns}"] = whole(image, rows, columns)[:, ::EVERY, ::EVERY]
    np.savez_compressed(OUTPUT, **arrays)


if __name__ == "__main__":
    main()
