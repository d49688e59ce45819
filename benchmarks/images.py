"""What pictures cost: requests with one each, all new, and again with their features kept.

    python benchmarks/images.py [NAME ...] [--runs 3] [--profile] [--output FILE] [--tiny]

The shapes of LLaVA-1.5-7B and Qwen2-VL-2B, as `media_workload.py` times them: 64 requests of one
picture of random pixels and 64 tokens in, 128 out. Prints one JSON line a model, and exits with 1
where a timed run compiled a program, or a repeated picture was encoded again. --profile adds one
run under JAX's profiler, for the share of its time in which a kernel ran. --tiny takes the models
of tests/fixtures/vision and a few requests.
"""

import functools
import sys
from typing import Any

import media_workload
import numpy as np
from media_workload import Workload
from PIL import Image

LLAVA: dict[str, Any] = {
    "architectures": ["LlavaForConditionalGeneration"],
    "ignore_index": -100,
    "image_token_index": 32000,
    "model_type": "llava",
    "pad_token_id": 32001,
    "projector_hidden_act": "gelu",
    "text_config": {
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "rms_norm_eps": 1e-05,
        "vocab_size": 32064,
    },
    "tie_word_embeddings": False,
    "vision_config": {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "vocab_size": 32064,
}
QWEN: dict[str, Any] = {
    "architectures": ["Qwen2VLForConditionalGeneration"],
    "hidden_act": "silu",
    "hidden_size": 1536,
    "image_token_id": 151655,
    "intermediate_size": 8960,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "qwen2_vl",
    "num_attention_heads": 12,
    "num_hidden_layers": 28,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {"mrope_section": [16, 24, 24], "type": "mrope"},
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "video_token_id": 151656,
    "vision_config": {
        "depth": 32,
        "embed_dim": 1280,
        "hidden_size": 1536,
        "in_chans": 3,
        "mlp_ratio": 4,
        "num_heads": 16,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
    },
    "vocab_size": 151936,
}
COLOURS = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


def picture(width: int, height: int, noise: np.random.Generator) -> Image.Image:
    """Random pixels."""
    return Image.fromarray(noise.integers(256, size=(height, width, 3), dtype=np.uint8))


WORKLOADS = {
    "llava-1.5-7b": Workload(
        LLAVA,
        {
            **COLOURS,
            "crop_size": {"height": 336, "width": 336},
            "do_center_crop": True,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_processor_type": "CLIPImageProcessor",
            "resample": 3,
            "rescale_factor": 0.00392156862745098,
            "size": {"shortest_edge": 336},
        },
        "image",
        functools.partial(picture, 1024, 768),
        "pictures of 1024x768",
    ),
    "qwen2-vl-2b": Workload(
        QWEN,
        {
            **COLOURS,
            "image_processor_type": "Qwen2VLImageProcessor",
            "max_pixels": 12845056,
            "merge_size": 2,
            "min_pixels": 3136,
            "patch_size": 14,
            "temporal_patch_size": 2,
        },
        "image",
        functools.partial(picture, 1024, 1024),
        "pictures of 1024x1024",
        {"mm_processor_kwargs": {"max_pixels": 1003520}},
    ),
}
SMALL = {"llava-1.5-7b": ("vision/llava", {}), "qwen2-vl-2b": ("vision/qwen2_vl", {})}

if __name__ == "__main__":
    about = (__doc__ or "").splitlines()[0]
    sys.exit(media_workload.main("images", about, WORKLOADS, SMALL))
