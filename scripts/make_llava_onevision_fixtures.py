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
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
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

OUTPUT = (
    Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "vision" / "llava_onevision"
)
EDGE, PATCH, ALONG = 38, 7, 5
"""Three pixels of an edge are beyond its patches, as six of 384 are."""
NEW_TOKENS = 64
LEAST_MARGIN = 0.005
"""Between the best and the second logit of a greedy step, so that rounding decides nothing."""

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
CHARACTERS = [*map(chr, range(33, 127)), "Ġ", "Ċ"]
"""Printable ASCII, space and line feed, as byte-level tokenizers write them."""
TOKENS = {token: i for i, token in enumerate([*SPECIAL, *CHARACTERS])}
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
    write_tokenizer()
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
    write_json("config.json", FIELDS)
    write_json(
        "config_v5.json", model.config.to_dict() | {"architectures": FIELDS["architectures"]}
    )
    write_json("preprocessor_config.json", PREPROCESSOR)
    write_json("video_preprocessor_config.json", VIDEO_PREPROCESSOR)
    print(f"seed {seed}")


def waves(*size: int) -> np.ndarray:
    """Waves with a little noise that move along time, uint8 [..., H, W, 3]."""
    random = np.random.default_rng(size)
    *t, y, x = np.indices(size)
    moved = [np.sin(x / (4 + c) + y / (6 + c) + sum(t) * (1 + c) / 3) * 90 + 128 for c in range(3)]
    pixels = np.stack(moved, -1) + random.normal(0, 4, (*size, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8)


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
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.3)
            elif "norm" in name:
                parameter.normal_(1, 0.3)
            elif "embed_tokens" in name or "newline" in name:
                parameter.normal_(0, 1.0)
            elif "position" in name:
                parameter.normal_(0, 0.5)
            else:
                parameter.normal_(0, 1.4 * parameter[0].numel() ** -0.5)
        model.lm_head.weight[: len(SPECIAL)] *= 0.1  # so that greedy tokens are characters
        model.lm_head.weight[len(TOKENS) :] *= 0.1
    return model.eval()


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
        found = continued(model, inputs, [features[f"{n}/{field}"] for n in names])
        if found is None:
            return None
        expected |= {f"{name}/{key}": array for key, array in found.items()}
        expected |= {f"{name}/text": np.array(text), f"{name}/media": np.array(names, np.str_)}
    return expected


@torch.no_grad()
def continued(model: Any, inputs: Any, rows: list[np.ndarray]) -> dict[str, np.ndarray] | None:
    prompt = inputs["input_ids"][0]
    whole = model(**inputs, use_cache=False).logits[0]
    embed = model.get_input_embeddings()
    x = embed(prompt)
    if rows:
        x[(prompt == TOKENS["<image>"]) | (prompt == TOKENS["<video>"])] = torch.tensor(
            np.concatenate(rows)
        )
    greedy: list[int] = []
    for step in range(NEW_TOKENS):
        logits = model(inputs_embeds=x[None], use_cache=False).logits[0]
        if step == 0 and torch.abs(logits - whole).max() > 1e-4:
            raise RuntimeError("The features are not those that the model makes of the prompt.")
        best = logits[-1].topk(2)
        token = int(best.indices[0])
        if best.values[0] - best.values[1] < LEAST_MARGIN or token < len(SPECIAL):
            return None
        greedy.append(token)
        x = torch.cat([x, embed(best.indices[:1])])
    if len(set(greedy)) < 8 or max(greedy) >= len(TOKENS):
        return None
    return {
        "prompt": prompt.numpy().astype(np.int32),
        "logits": whole.numpy(),
        "greedy": np.array(greedy, np.int32),
    }


def old_name(name: str) -> str:
    """As in the published checkpoints."""
    for new, old in (
        ("lm_head.", "language_model.lm_head."),
        ("model.language_model.", "language_model.model."),
        ("model.vision_tower.", "vision_tower.vision_model."),
        ("model.", ""),
    ):
        if name.startswith(new):
            return old + name.removeprefix(new)
    raise RuntimeError(f"The tensor {name} is new; add its old name.")


def write_tokenizer() -> None:
    tokenizer = Tokenizer(models.BPE(vocab=TOKENS, merges=[]))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    (OUTPUT / "tokenizer.json").write_text(tokenizer.to_str(), "utf-8")
    settings = {
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    write_json("tokenizer_config.json", settings)


def write_json(name: str, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    (OUTPUT / name).write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
