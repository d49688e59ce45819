"""Makes tests/fixtures/vision/qwen2_vl: a tiny random Qwen2-VL and what `transformers` computes.

Run by hand, with torch and transformers installed: `python scripts/make_qwen2_vl_fixtures.py`.
config.json and the names of the tensors are as in the published checkpoints; config_nested.json and
`names` of expected.npz are as `transformers` 5 has them. expected.npz holds besides

    PICTURE/picture                uint8 [H, W, 3]
    PICTURE/patches, /grid         what the processor makes of it
    PICTURE/features               of the tower
    PROMPT/pictures, /prompt       names, and token ids with a placeholder for each feature
    PROMPT/positions, /delta       along time, height and width, and of what follows the prompt
    PROMPT/logits, /greedy         of every token of the prompt, and what greedy decoding adds

and expected_video.npz the same of videos that the processor makes, with VIDEO/frames, uint8
[T, H, W, 3], and

    capped/patches, /grid          of the first, where all frames share one budget
    full/patches, /grid            of the first, with the published patch size; every 7th, of which
                                   every 97th value
    sizes, sizes/grids, /capped    frames, width and height of videos, and their published grids
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

OUTPUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "vision" / "qwen2_vl"
NEW_TOKENS = 64
LEAST_MARGIN = 0.005
"""Between the best and the second logit of a greedy step, so that rounding decides nothing."""

PICTURES = {"wide": (24, 40), "tall": (61, 17), "small": (9, 11), "thin": (6, 90)}
"""Height and width."""
VIDEOS = {"long": (5, 60, 80), "short": (4, 17, 30)}
"""Frames, height and width."""
CAPPED = {"cap_pixels_per_frame": True, "max_video_tokens": 22}
PROMPTS: dict[str, list[int | str]] = {
    "text": [29],
    "one": [7, "wide", 9],
    "two": [5, "tall", 4, "wide", 6],
    "many": [1, "small", 0, "thin", 0, "tall", 3],
}
"""Lengths of random text, and pictures."""
VIDEO_PROMPTS: dict[str, list[int | str]] = {
    "clip": [3, "long", 8],
    "mixed": [2, "short", 3, "wide", 5],
}

SPECIAL = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
]
CHARACTERS = [*map(chr, range(33, 127)), "Ġ", "Ċ"]
"""Printable ASCII, space and line feed, as byte-level tokenizers write them."""
TOKENS = {token: i for i, token in enumerate([*SPECIAL, *CHARACTERS])}
VOCABULARY = 112
PAD = {name: TOKENS["<|image_pad|>"] for name in PICTURES}
PAD |= {name: TOKENS["<|video_pad|>"] for name in VIDEOS}
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text }}"
    "{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

FIELDS: dict[str, Any] = {
    "architectures": ["Qwen2VLForConditionalGeneration"],
    "attention_dropout": 0.0,
    "bos_token_id": TOKENS["<|endoftext|>"],
    "eos_token_id": TOKENS["<|im_end|>"],
    "hidden_act": "silu",
    "hidden_size": 32,
    "image_token_id": TOKENS["<|image_pad|>"],
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
    "max_window_layers": 2,
    "model_type": "qwen2_vl",
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    "rope_theta": 100.0,
    "sliding_window": 512,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "use_cache": True,
    "use_sliding_window": False,
    "video_token_id": TOKENS["<|video_pad|>"],
    "vision_config": {
        "depth": 3,
        "embed_dim": 24,
        "hidden_size": 32,
        "in_chans": 3,
        "mlp_ratio": 2,
        "num_heads": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "spatial_patch_size": 4,
        "temporal_patch_size": 2,
    },
    "vision_end_token_id": TOKENS["<|vision_end|>"],
    "vision_start_token_id": TOKENS["<|vision_start|>"],
    "vision_token_id": TOKENS["<|vision_pad|>"],
    "vocab_size": VOCABULARY,
}
PREPROCESSOR = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "Qwen2VLImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "max_pixels": 1024,
    "merge_size": 2,
    "min_pixels": 256,
    "patch_size": 4,
    "processor_class": "Qwen2VLProcessor",
    "temporal_patch_size": 2,
}
VIDEO_PREPROCESSOR = {name: PREPROCESSOR[name] for name in PREPROCESSOR if "processor" not in name}
VIDEO_PREPROCESSOR |= {
    "max_frames": 6,
    "max_pixels": 768,
    "processor_class": "Qwen2VLProcessor",
    "video_processor_type": "Qwen2VLVideoProcessor",
}
OPTIONS = ("patch_size", "merge_size", "temporal_patch_size", "min_pixels", "max_pixels")


def main() -> None:
    torch.set_num_threads(1)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    pictures = {name: picture(*size, seed) for seed, (name, size) in enumerate(PICTURES.items(), 1)}
    seed, model, expected = find_model(pictures)
    names = [name for name in model.state_dict() if name != "lm_head.weight"]
    tensors = {old_name(name): model.state_dict()[name].contiguous() for name in names}
    save_file(tensors, OUTPUT / "model.safetensors", metadata={"format": "pt"})
    np.savez_compressed(OUTPUT / "expected.npz", names=np.array(names), **expected)
    np.savez_compressed(OUTPUT / "expected_video.npz", **expected_of_videos(model, expected))
    write_json("config.json", FIELDS)
    nested = model.config.to_diff_dict() | {"architectures": FIELDS["architectures"]}
    write_json("config_nested.json", nested)
    write_json("preprocessor_config.json", PREPROCESSOR)
    write_json("video_preprocessor_config.json", VIDEO_PREPROCESSOR)
    write_tokenizer()
    print(f"seed {seed}")


def picture(height: int, width: int, seed: int) -> dict[str, np.ndarray]:
    """Waves with noise, and what the processor makes of them."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (3 + c + seed) + y / (5 + c)) * 90 + 128 for c in range(3)]
    pixels = np.stack(waves, -1) + random.normal(0, 25, (height, width, 3))
    pixels = np.clip(pixels, 0, 255).astype(np.uint8)
    processor = Qwen2VLImageProcessorPil(**{name: PREPROCESSOR[name] for name in OPTIONS})
    out = processor(Image.fromarray(pixels), return_tensors="np")
    patches, grid = np.asarray(out["pixel_values"]), np.asarray(out["image_grid_thw"])[0]
    return {"picture": pixels, "patches": patches.astype(np.float32), "grid": grid}


def video(frames: int, height: int, width: int) -> np.ndarray:
    """Waves that move, with a little noise."""
    random = np.random.default_rng(frames)
    t, y, x = np.mgrid[:frames, :height, :width]
    waves = [np.sin(x / (4 + c) + y / (6 + c) + t * (1 + c) / 3) * 90 + 128 for c in range(3)]
    pixels = np.stack(waves, -1) + random.normal(0, 2, (frames, height, width, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def processed(frames: np.ndarray, **options: Any) -> dict[str, np.ndarray]:
    """What the processor makes of a video."""
    out = Qwen2VLVideoProcessor(**options)(videos=[frames], return_tensors="pt")
    return {"patches": out["pixel_values_videos"].numpy(), "grid": out["video_grid_thw"][0].numpy()}


def expected_of_videos(model: Any, pictures: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of each prompt with videos, with the first seed whose greedy tokens are clear."""
    options = {name: VIDEO_PREPROCESSOR[name] for name in OPTIONS}
    out = video_sizes()
    for name, size in VIDEOS.items():
        frames = video(*size)
        inputs = {"frames": frames} | processed(frames, **options)
        inputs["features"] = features(model, name, inputs)
        out |= {f"{name}/{field}": array for field, array in inputs.items()}
    frames = out["long/frames"]
    capped, full = processed(frames, **options, **CAPPED), processed(frames)
    full["patches"] = full["patches"][::7, ::97]
    out |= {f"capped/{field}": array for field, array in capped.items()}
    out |= {f"full/{field}": array for field, array in full.items()}
    for name, layout in VIDEO_PROMPTS.items():
        tries = (
            reference(model, layout, pictures | out, np.random.default_rng(seed))
            for seed in range(1000)
        )
        found = next(one for one in tries if one is not None)
        out |= {f"{name}/{field}": array for field, array in found.items()}
    return out


def video_sizes() -> dict[str, np.ndarray]:
    """Of videos as published models see them, without and with a budget that frames share."""
    sizes = np.random.default_rng(1).integers((1, 20, 20), (24, 1200, 900), (16, 3))
    out = {"sizes": sizes}
    for name, options in {"grids": {}, "capped": CAPPED | {"max_video_tokens": 1000}}.items():
        grids = [
            processed(np.zeros((frames, height, width, 3), np.uint8), **options)["grid"]
            for frames, width, height in sizes.tolist()
        ]
        out[f"sizes/{name}"] = np.stack(grids)
    return out


def find_model(pictures: dict[str, dict[str, np.ndarray]]) -> tuple[int, Any, Any]:
    """The first seed whose greedy tokens are neither a tie nor all the same."""
    for seed in range(1000):
        model = random_model(seed)
        random = np.random.default_rng(seed)
        expected = {f"{n}/{field}": a for n, i in pictures.items() for field, a in i.items()}
        expected |= {f"{n}/features": features(model, n, i) for n, i in pictures.items()}
        for name, layout in PROMPTS.items():
            found = reference(model, layout, expected, random)
            if found is None:
                break
            expected |= {f"{name}/{field}": array for field, array in found.items()}
        else:
            return seed, model, expected
    raise RuntimeError("No seed gives clear greedy tokens; widen the weights.")


@torch.no_grad()
def random_model(seed: int) -> Any:
    torch.manual_seed(seed)
    config = Qwen2VLConfig(**json.loads(json.dumps(FIELDS)))
    model = Qwen2VLForConditionalGeneration._from_config(
        config, attn_implementation="eager", dtype=torch.float32
    )
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.normal_(1 if "norm" in name and name.endswith("weight") else 0, 0.3)
        elif "embed_tokens" in name:
            parameter.normal_(0, 1)
            parameter[: len(SPECIAL)] *= 0.1  # so that greedy decoding gives characters alone
            parameter[len(TOKENS) :] *= 0.1
        else:
            wide = parameter[0].numel()
            parameter.normal_(0, 1.4 * wide**-0.5)
    model.model.visual.merger.ln_q.weight.normal_(1, 0.3)
    return model.eval()


@torch.no_grad()
def features(model: Any, name: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
    grid = torch.tensor(inputs["grid"])[None]
    encode = model.model.get_video_features if name in VIDEOS else model.model.get_image_features
    [rows] = encode(torch.tensor(inputs["patches"]), grid).pooler_output
    return rows.numpy()


@torch.no_grad()
def reference(
    model: Any, layout: list[int | str], inputs: dict[str, np.ndarray], random: np.random.Generator
) -> dict[str, np.ndarray] | None:
    """What is expected of a prompt; None where greedy decoding is not clear."""
    names = [part for part in layout if isinstance(part, str)]
    prompt = torch.tensor(
        [token for part in layout for token in tokens_of(part, inputs, random)], dtype=torch.long
    )
    kinds = sum(k * (prompt == TOKENS[f"<|{n}_pad|>"]) for k, n in ((1, "image"), (2, "video")))
    positions, delta = model.model.get_rope_index(prompt[None], kinds[None], **grids(names, inputs))
    whole = model(
        prompt[None],
        mm_token_type_ids=kinds[None],
        use_cache=False,
        **pixels(names, inputs),
        **grids(names, inputs),
    ).logits[0]
    model.model.rope_deltas = None
    x = model.get_input_embeddings()(prompt)
    if names:
        rows = np.concatenate([inputs[f"{name}/features"] for name in names])
        x[kinds > 0] = torch.tensor(rows)
    greedy: list[int] = []
    places = positions[:, 0]
    for step in range(NEW_TOKENS):
        logits = model(inputs_embeds=x[None], position_ids=places[:, None], use_cache=False).logits[
            0
        ]
        if step == 0:
            assert torch.abs(logits - whole).max() < 1e-4
        best = logits[-1].topk(2)
        if best.values[0] - best.values[1] < LEAST_MARGIN or best.indices[0] < len(SPECIAL):
            return None
        greedy.append(int(best.indices[0]))
        x = torch.cat([x, model.get_input_embeddings()(best.indices[:1])])
        places = torch.cat([places, torch.full((3, 1), places.shape[1] + int(delta))], 1)
    if len(set(greedy)) < 12:
        return None
    return {
        "pictures": np.array(names, dtype=str),
        "prompt": prompt.numpy().astype(np.int32),
        "positions": positions[:, 0].numpy().astype(np.int32),
        "delta": np.int32(int(delta)),
        "logits": whole.numpy(),
        "greedy": np.array(greedy, np.int32),
    }


def tokens_of(
    part: int | str, inputs: dict[str, np.ndarray], random: np.random.Generator
) -> list[int]:
    if isinstance(part, int):
        return random.integers(len(SPECIAL), len(TOKENS), part).tolist()
    count = len(inputs[f"{part}/features"])
    return [TOKENS["<|vision_start|>"], *[PAD[part]] * count, TOKENS["<|vision_end|>"]]


def grids(names: list[str], inputs: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {
        f"{kind}_grid_thw": torch.tensor(np.stack([inputs[f"{n}/grid"] for n in chosen]))
        for kind, chosen in by_kind(names).items()
    }


def pixels(names: list[str], inputs: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    keys = {"image": "pixel_values", "video": "pixel_values_videos"}
    return {
        keys[kind]: torch.tensor(np.concatenate([inputs[f"{n}/patches"] for n in chosen]))
        for kind, chosen in by_kind(names).items()
    }


def by_kind(names: list[str]) -> dict[str, list[str]]:
    kinds = {
        "image": [name for name in names if name in PICTURES],
        "video": [name for name in names if name in VIDEOS],
    }
    return {kind: chosen for kind, chosen in kinds.items() if chosen}


def old_name(name: str) -> str:
    """As in the published checkpoints."""
    return name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")


def write_tokenizer() -> None:
    tokenizer = Tokenizer(models.BPE(vocab=TOKENS, merges=[]))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    (OUTPUT / "tokenizer.json").write_text(tokenizer.to_str(), "utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "chat_template": TEMPLATE,
    }
    write_json("tokenizer_config.json", settings)


def write_json(name: str, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    (OUTPUT / name).write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
