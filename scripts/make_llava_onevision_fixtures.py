"""Makes tests/fixtures/vision/llava_onevision: a tiny random LLaVA-OneVision with what
`transformers` computes of it.

Run by hand, with torch, torchvision and transformers installed. config.json and the names of
tensors are as in published files; config_v5.json is what `transformers` 5 makes of it.
expected.npz holds

    PICTURE/picture, VIDEO/frames  uint8 [H, W, 3] and [T, H, W, 3]
    NAME/pixels                    what the processor makes of those in PIXELS
    PICTURE/features, /untiled     what the language model gets of a picture, and of it as one of
                                   several of a conversation
    VIDEO/features                 and of a video
    states                         all hidden states of the tower, of STATES' whole
    names                          of tensors in the newest layout
    sizes, sizes/tokens, /grids    heights and widths, the features that published models make of
                                   pictures of them, and rows and columns of their tiles
    PROMPT/text, /media            a prompt, and the names of what it shows
    PROMPT/prompt, /logits         its tokens, a placeholder for each feature, and logits
    PROMPT/greedy                  the tokens that greedy decoding adds
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.llava_onevision.modeling_llava_onevision import get_anyres_image_grid_shape
from transformers.models.llava_onevision.video_processing_llava_onevision import (
    LlavaOnevisionVideoProcessor,
)
from vision_fixtures import (
    continued,
    numbered,
    old_name,
    randomize,
    waves,
    write_json,
    write_tokenizer,
)

OUTPUT = (
    Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "vision" / "llava_onevision"
)
EDGE, PATCH, ALONG = 38, 7, 5
"""Three pixels of an edge are beyond its patches, as six of 384 are."""
PICTURES = {"wide": (40, 75), "tall": (70, 20), "small": (21, 24), "thin": (7, 110)}
PICTURES |= {"large": (108, 99)}
"""Height and width."""
VIDEOS = {"clip": (3, 30, 44), "film": (5, 50, 41)}
"""Frames, height and width."""
PIXELS = ("tall", "small", "clip")
STATES = "tall"
PROMPTS: dict[str, tuple[str, list[str]]] = {
    "text": ("What is the capital of Italy?", []),
    "one": ("<image>\nWhat is in the picture?", ["large"]),
    "two": ("<image>One, and <image>another.", ["tall", "small"]),
    "video": ("<video>\nWhat happens?", ["film"]),
    "mixed": ("<image>Is it in <video>the video?", ["thin", "clip"]),
    "several": ("<image>and<image>: which is red?", ["wide", "large"]),
}
SEVERAL = "several"
"""The prompt whose pictures are not tiled."""

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
TOKENS = numbered(SPECIAL)
VOCABULARY = 104
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content if part.type == 'image' %}<image>\n{% endfor %}"
    "{% for part in message.content if part.type == 'video' %}<video>\n{% endfor %}"
    "{% for part in message.content if part.type == 'text' %}{{ part.text }}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

EDGES = [EDGE, 2 * EDGE, 3 * EDGE]
FIELDS: dict[str, Any] = {
    "architectures": ["LlavaOnevisionForConditionalGeneration"],
    "ignore_index": -100,
    "image_grid_pinpoints": [[height, width] for height in EDGES for width in EDGES],
    "image_token_index": TOKENS["<image>"],
    "model_type": "llava_onevision",
    "projector_hidden_act": "gelu",
    "text_config": {
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": 32,
        "intermediate_size": 48,
        "max_position_embeddings": 512,
        "max_window_layers": 2,
        "model_type": "qwen2",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rope_theta": 1000.0,
        "sliding_window": 512,
        "torch_dtype": "float32",
        "use_sliding_window": False,
        "vocab_size": VOCABULARY,
    },
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "use_image_newline_parameter": True,
    "video_token_index": TOKENS["<video>"],
    "vision_aspect_ratio": "anyres_max_3",
    "vision_config": {
        "hidden_size": 24,
        "image_size": EDGE,
        "intermediate_size": 40,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
        "patch_size": PATCH,
        "vision_use_head": False,
    },
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "full",
}
SQUARES: dict[str, Any] = {
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "processor_class": "LlavaOnevisionProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": EDGE, "width": EDGE},
}
PREPROCESSOR = SQUARES | {
    "do_pad": True,
    "image_grid_pinpoints": FIELDS["image_grid_pinpoints"],
    "image_processor_type": "LlavaOnevisionImageProcessor",
}
VIDEO_PREPROCESSOR = SQUARES | {"video_processor_type": "LlavaOnevisionVideoProcessor"}


def main() -> None:
    torch.set_num_threads(1)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    write_tokenizer(
        OUTPUT,
        SPECIAL,
        chat_template=TEMPLATE,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    processor = make_processor()
    media = {name: waves(*size) for name, size in (PICTURES | VIDEOS).items()}
    for seed in range(1000):
        model = random_model(seed)
        features = media_features(model, processor, media)
        prompts = prompts_expected(model, processor, media, features)
        if prompts is not None:
            break
    else:
        raise RuntimeError("No seed gives clear greedy tokens; widen the weights.")
    expected = features | prompts | inputs_expected(model, processor, media) | sizes_expected()
    expected["names"] = np.array(list(model.state_dict()))
    np.savez_compressed(OUTPUT / "expected.npz", **expected)
    tensors = {old_name(name): value.contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, OUTPUT / "model.safetensors", metadata={"format": "pt"})
    write_json(OUTPUT / "config.json", FIELDS)
    newer = model.config.to_dict() | {"architectures": FIELDS["architectures"]}
    write_json(OUTPUT / "config_v5.json", newer)
    write_json(OUTPUT / "preprocessor_config.json", PREPROCESSOR)
    write_json(OUTPUT / "video_preprocessor_config.json", VIDEO_PREPROCESSOR)
    print(f"seed {seed}")


def make_processor() -> LlavaOnevisionProcessor:
    return LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessorPil(**PREPROCESSOR),
        PreTrainedTokenizerFast.from_pretrained(OUTPUT),
        LlavaOnevisionVideoProcessor(**VIDEO_PREPROCESSOR),
        num_image_tokens=ALONG**2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=FIELDS["vision_aspect_ratio"],
    )


def random_model(seed: int) -> Any:
    """Weights of which pictures and text both show in the logits."""
    torch.manual_seed(seed)
    config = LlavaOnevisionConfig(**json.loads(json.dumps(FIELDS)))
    model = LlavaOnevisionForConditionalGeneration._from_config(
        config, attn_implementation="eager", dtype=torch.float32
    )
    return randomize(model, SPECIAL)


@torch.no_grad()
def media_features(
    model: Any, processor: LlavaOnevisionProcessor, media: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    out = {}
    for name in VIDEOS:
        pixels = processor.video_processor([media[name]], return_tensors="pt").pixel_values_videos
        [out[f"{name}/features"]] = model.get_video_features(pixels).pooler_output.numpy()
    for name in PICTURES:
        image = Image.fromarray(media[name])
        for field, given in {"features": [[image]], "untiled": [[image, image]]}.items():
            inputs = processor.image_processor(given, return_tensors="pt")
            rows = model.get_image_features(**inputs).pooler_output
            out[f"{name}/{field}"] = rows[0].numpy()
    return out


@torch.no_grad()
def inputs_expected(
    model: Any, processor: LlavaOnevisionProcessor, media: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    out = {f"{n}/{'frames' if n in VIDEOS else 'picture'}": array for n, array in media.items()}
    for name in PIXELS:
        if name in VIDEOS:
            [pixels] = processor.video_processor([media[name]]).pixel_values_videos
        else:
            [pixels] = processor.image_processor(Image.fromarray(media[name])).pixel_values
        out[f"{name}/pixels"] = np.asarray(pixels)
    whole = torch.tensor(out[f"{STATES}/pixels"][:1])
    states = model.model.vision_tower(whole, output_hidden_states=True).hidden_states
    return out | {"states": torch.cat(states).numpy()}


def sizes_expected() -> dict[str, np.ndarray]:
    """Of pictures as published models see them, some of them very thin."""
    random = np.random.default_rng(2)
    sizes = random.integers(1, 3000, (40, 2)).tolist() + random.integers(1, 400, (16, 2)).tolist()
    sizes += [[384, 384], [1, 1], [1, 3000], [3000, 1], [7, 2001], [2001, 7], [385, 383]]
    sizes += [[1152, 1152], [2304, 2304], [1274, 1221], [1206, 1276], [9000, 8000]]
    published = LlavaOnevisionImageProcessorPil()
    processor = LlavaOnevisionProcessor(
        published,
        PreTrainedTokenizerFast.from_pretrained(OUTPUT),
        LlavaOnevisionVideoProcessor(),
        num_image_tokens=729,
        vision_feature_select_strategy="full",
    )
    tokens = processor._get_num_multimodal_tokens(image_sizes=sizes)["num_image_tokens"]
    pinpoints = published.image_grid_pinpoints
    grids = [get_anyres_image_grid_shape(size, pinpoints, 384) for size in sizes]
    return {
        "sizes": np.array(sizes),
        "sizes/tokens": np.array(tokens),
        "sizes/grids": np.array(grids),
    }


def prompts_expected(
    model: Any,
    processor: LlavaOnevisionProcessor,
    media: dict[str, np.ndarray],
    features: dict[str, np.ndarray],
) -> dict[str, np.ndarray] | None:
    """None where greedy tokens of a prompt are nearly a tie, much the same, or special."""
    expected = {}
    for name, (text, names) in PROMPTS.items():
        images = [Image.fromarray(media[n]) for n in names if n in PICTURES]
        text = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        inputs = processor(
            text=text,
            images=([images] if name == SEVERAL else images) or None,
            videos=[media[n] for n in names if n in VIDEOS] or None,
            return_tensors="pt",
        )
        field = "untiled" if name == SEVERAL else "features"
        found = continued(model, inputs, [features[f"{n}/{field}"] for n in names], SPECIAL)
        if found is None:
            return None
        expected |= {f"{name}/{key}": array for key, array in found.items()}
        expected |= {f"{name}/text": np.array(text), f"{name}/media": np.array(names, np.str_)}
    return expected


if __name__ == "__main__":
    main()
