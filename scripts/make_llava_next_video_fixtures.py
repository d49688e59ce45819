"""Makes tests/fixtures/vision/llava_next_video and llava_next: a tiny random LLaVA-NeXT-Video made
of Llama and a LLaVA-NeXT made of Mistral, with what `transformers` computes of them.

Run by hand, with torch, torchvision and transformers installed. config.json and the names of
tensors are as in published files; config_v5.json is what `transformers` 5 makes of it.
expected.npz holds, of the second model without what is of videos,

    PICTURE/picture, VIDEO/frames  uint8 [H, W, 3] and [T, H, W, 3]
    NAME/pixels                    what the processor makes of those in PIXELS
    PICTURE/features               what the language model gets of a picture
    VIDEO/features                 and of a video
    VIDEO/max, /conv               the same where `spatial_pool_mode` is another
    conv/weight, /bias             of that convolution
    names                          of tensors in the newest layout
    sizes, sizes/tokens            heights and widths, and the features that published models make
                                   of pictures of them
    PROMPT/text, /media            a prompt, and the names of what it shows
    PROMPT/prompt, /logits         its tokens, a placeholder for each feature, and logits
    PROMPT/greedy                  the tokens that greedy decoding adds
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaNextVideoProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.llava_next_video.video_processing_llava_next_video import (
    LlavaNextVideoVideoProcessor,
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

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "vision"
EDGE, PATCH = 32, 8
PICTURES = {"wide": (30, 66), "tall": (70, 20), "small": (21, 24), "thin": (14, 110)}
PICTURES |= {"large": (90, 80), "line": (3, 120)}
"""Height and width. Of the last no line of features is left."""
VIDEOS = {"clip": (3, 36, 50), "film": (5, 60, 41), "exact": (2, 32, 32)}
"""Frames, height and width; those of the last need no scaling."""
PIXELS = ("tall", "clip", "film", "exact")

SPECIAL = ["<unk>", "<s>", "</s>", "<image>", "<video>"]
TOKENS = numbered(SPECIAL)
VOCABULARY = 104
TEMPLATE = (
    "{% for message in messages %}{{ message.role | upper }}: "
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content if part.type == 'image' %}<image>\n{% endfor %}"
    "{% for part in message.content if part.type == 'video' %}<video>\n{% endfor %}"
    "{% for part in message.content if part.type == 'text' %}{{ part.text }}{% endfor %}"
    "{% endif %}{{ ' ' if message.role == 'user' else '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)

FIELDS: dict[str, Any] = {
    "ignore_index": -100,
    "image_grid_pinpoints": [
        [EDGE * height, EDGE * width] for height, width in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
    ],
    "image_seq_length": (EDGE // PATCH) ** 2,
    "image_token_index": TOKENS["<image>"],
    "projector_hidden_act": "gelu",
    "text_config": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "max_position_embeddings": 512,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000.0,
        "torch_dtype": "float32",
        "vocab_size": VOCABULARY,
    },
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "use_image_newline_parameter": True,
    "vision_config": {
        "hidden_size": 24,
        "image_size": EDGE,
        "intermediate_size": 40,
        "model_type": "clip_vision_model",
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
        "patch_size": PATCH,
        "projection_dim": 16,
        "vocab_size": VOCABULARY,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}
VIDEO_FIELDS: dict[str, Any] = {
    "architectures": ["LlavaNextVideoForConditionalGeneration"],
    "model_type": "llava_next_video",
    "spatial_pool_mode": "average",
    "spatial_pool_out_channels": FIELDS["vision_config"]["hidden_size"],
    "spatial_pool_stride": 2,
    "text_config": FIELDS["text_config"]
    | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    "video_seq_length": (EDGE // PATCH) ** 2 // 2,
    "video_token_index": TOKENS["<video>"],
}
MISTRAL_FIELDS: dict[str, Any] = {
    "architectures": ["LlavaNextForConditionalGeneration"],
    "model_type": "llava_next",
    "text_config": FIELDS["text_config"]
    | {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 20},
}
CLIP: dict[str, Any] = {
    "crop_size": {"height": EDGE, "width": EDGE},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": EDGE},
}
PREPROCESSOR = CLIP | {
    "do_pad": True,
    "image_grid_pinpoints": FIELDS["image_grid_pinpoints"],
    "image_processor_type": "LlavaNextImageProcessor",
}
VIDEO_PREPROCESSOR = CLIP | {"video_processor_type": "LlavaNextVideoVideoProcessor"}


@dataclasses.dataclass(frozen=True)
class Case:
    """A model and its prompts."""

    folder: str
    config: type[Any]
    model: type[Any]
    fields: dict[str, Any]
    media: tuple[str, ...]
    prompts: dict[str, tuple[str, tuple[str, ...]]]

    @property
    def path(self) -> Path:
        return FOLDER / self.folder

    @property
    def pictures(self) -> list[str]:
        return [name for name in self.media if name in PICTURES]

    @property
    def videos(self) -> list[str]:
        return [name for name in self.media if name in VIDEOS]


CASES = (
    Case(
        "llava_next_video",
        LlavaNextVideoConfig,
        LlavaNextVideoForConditionalGeneration,
        FIELDS | VIDEO_FIELDS,
        (*PICTURES, *VIDEOS),
        {
            "text": ("What is the capital of Italy?", ()),
            "one": ("<image>\nWhat is in the picture?", ("large",)),
            "several": ("<image>One, <image>another, and <image>.", ("tall", "small", "wide")),
            "video": ("<video>\nWhat happens?", ("film",)),
            "videos": ("<video>and<video>: which is red?", ("film", "clip")),
            "mixed": ("<image>Is it in <video>the video?", ("thin", "clip")),
        },
    ),
    Case(
        "llava_next",
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        FIELDS | MISTRAL_FIELDS,
        ("tall", "wide"),
        {
            "text": ("What is the capital of Italy?", ()),
            "one": ("<image>\nWhat is in the picture?", ("tall",)),
            "several": ("<image>One, and <image>another.", ("wide", "tall")),
        },
    ),
)


def main() -> None:
    torch.set_num_threads(1)
    for case in CASES:
        case.path.mkdir(parents=True, exist_ok=True)
        write_tokenizer(case.path, SPECIAL, chat_template=TEMPLATE, eos_token="</s>")
        make(case)


def make(case: Case) -> None:
    processor = make_processor(case)
    media = {name: waves(*(PICTURES | VIDEOS)[name]) for name in case.media}
    for seed in range(2000):
        model = random_model(case, seed)
        features = media_features(model, processor, media)
        prompts = prompts_expected(case, model, processor, media, features)
        if prompts is not None:
            break
    else:
        raise RuntimeError("No seed gives clear greedy tokens; widen the weights.")
    expected = features | prompts | inputs_expected(processor, media)
    if case.videos:
        expected |= pools_expected(case, model, processor, media) | sizes_expected(case)
    expected["names"] = np.array(list(model.state_dict()))
    np.savez_compressed(case.path / "expected.npz", **expected)
    tensors = {old_name(name): value.contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, case.path / "model.safetensors", metadata={"format": "pt"})
    write_json(case.path / "config.json", case.fields)
    newer = model.config.to_dict() | {"architectures": case.fields["architectures"]}
    write_json(case.path / "config_v5.json", newer)
    write_json(case.path / "preprocessor_config.json", PREPROCESSOR)
    if case.videos:
        write_json(case.path / "video_preprocessor_config.json", VIDEO_PREPROCESSOR)
    print(f"{case.folder}: seed {seed}")


def make_processor(case: Case) -> Any:
    images = LlavaNextImageProcessorPil(**PREPROCESSOR)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(case.path)
    given = {
        "patch_size": PATCH,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    }
    if not case.videos:
        return LlavaNextProcessor(images, tokenizer, **given)
    videos = LlavaNextVideoVideoProcessor(**VIDEO_PREPROCESSOR)
    return LlavaNextVideoProcessor(videos, images, tokenizer, **given)


def random_model(case: Case, seed: int, **changed: Any) -> Any:
    torch.manual_seed(seed)
    config = case.config(**json.loads(json.dumps(case.fields | changed)))
    model = case.model._from_config(config, attn_implementation="eager", dtype=torch.float32)
    return randomize(model, SPECIAL)


@torch.no_grad()
def video_features(model: Any, processor: Any, video: np.ndarray) -> np.ndarray:
    pixels = processor.video_processor([video], return_tensors="pt").pixel_values_videos
    [rows] = model.get_video_features(pixels).pooler_output
    return rows.numpy()


@torch.no_grad()
def media_features(
    model: Any, processor: Any, media: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    out = {}
    for name, array in media.items():
        if name in VIDEOS:
            out[f"{name}/features"] = video_features(model, processor, array)
        else:
            inputs = processor.image_processor(Image.fromarray(array), return_tensors="pt")
            [rows] = model.get_image_features(**inputs).pooler_output
            out[f"{name}/features"] = rows.numpy()
    return out


def inputs_expected(processor: Any, media: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    out = {f"{n}/{'frames' if n in VIDEOS else 'picture'}": array for n, array in media.items()}
    for name in media.keys() & set(PIXELS):
        if name in VIDEOS:
            [pixels] = processor.video_processor([media[name]]).pixel_values_videos
        else:
            [pixels] = processor.image_processor(Image.fromarray(media[name])).pixel_values
        out[f"{name}/pixels"] = np.asarray(pixels)
    return out


def pools_expected(
    case: Case, model: Any, processor: Any, media: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Of a model that pools otherwise, and else is the same."""
    out = {}
    for mode in ("max", "conv"):
        other = random_model(case, 0, spatial_pool_mode=mode)
        other.load_state_dict(model.state_dict(), strict=False)
        out[f"exact/{mode}"] = video_features(other, processor, media["exact"])
    pool = other.model.vision_resampler.pool
    return out | {
        "conv/weight": pool.weight.detach().numpy(),
        "conv/bias": pool.bias.detach().numpy(),
    }


def sizes_expected(case: Case) -> dict[str, np.ndarray]:
    """Of pictures as published models see them, some of them very thin."""
    random = np.random.default_rng(2)
    sizes = random.integers(1, 3000, (40, 2)).tolist() + random.integers(1, 400, (16, 2)).tolist()
    sizes += [[336, 336], [1, 1], [1, 3000], [3000, 1], [7, 2001], [2001, 7], [337, 335]]
    processor = LlavaNextVideoProcessor(
        LlavaNextVideoVideoProcessor(),
        LlavaNextImageProcessorPil(size={"shortest_edge": 336}),
        PreTrainedTokenizerFast.from_pretrained(case.path),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    tokens = processor._get_num_multimodal_tokens(image_sizes=sizes)["num_image_tokens"]
    return {"sizes": np.array(sizes), "sizes/tokens": np.array(tokens)}


def prompts_expected(
    case: Case,
    model: Any,
    processor: Any,
    media: dict[str, np.ndarray],
    features: dict[str, np.ndarray],
) -> dict[str, np.ndarray] | None:
    """None where greedy tokens of a prompt are nearly a tie, much the same, or special."""
    expected = {}
    for name, (text, names) in case.prompts.items():
        text = f"USER: {text} ASSISTANT:"
        rows = [features[f"{n}/features"] for n in names]
        inputs = inputs_of(processor, text, {n: media[n] for n in names}, list(map(len, rows)))
        found = continued(model, inputs, rows, SPECIAL)
        if found is None:
            return None
        expected |= {f"{name}/{key}": array for key, array in found.items()}
        expected |= {f"{name}/text": np.array(text), f"{name}/media": np.array(names, np.str_)}
    return expected


def inputs_of(
    processor: Any, text: str, media: dict[str, np.ndarray], counts: list[int]
) -> dict[str, Any]:
    """Of a prompt; its tokens alone where videos differ in length, which models take one by one."""
    videos = [array for name, array in media.items() if name in VIDEOS]
    if len({len(video) for video in videos}) > 1:
        parts = text.split("<video>")
        repeated = zip(parts[1:], counts, strict=True)
        text = parts[0] + "".join("<video>" * count + part for part, count in repeated)
        return processor.tokenizer(text, return_tensors="pt")
    kinds: dict[str, Any] = {"images": [Image.fromarray(media[n]) for n in media if n in PICTURES]}
    kinds |= {"videos": videos} if videos else {}
    kinds = {kind: given for kind, given in kinds.items() if given}
    return processor(text=text, return_tensors="pt", **kinds)


if __name__ == "__main__":
    main()
