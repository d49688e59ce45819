"""Makes tests/fixtures/vision/llava: a tiny random LLaVA with what `transformers` computes of it.

Run by hand, with torch and transformers installed: `python scripts/make_llava_fixtures.py`.
config.json and the names of tensors are as in the files of LLaVA-1.5; config_v5.json is what
`transformers` 5 makes of it. expected.npz holds

    PICTURE/picture                        uint8 [H, W, 3]
    PICTURE/pixels, /features              what the processor and the projector give
    states                                 all hidden states of the tower, of the first picture
    several/linear_1, /linear_2, /features a projector without biases of the states SEVERAL, class
                                           token included, and the features of the first picture
    names                                  of tensors in the newest layout
    PROMPT/text, /pictures                 a prompt, and the names of its pictures
    PROMPT/prompt, /logits                 its tokens, a placeholder for each feature, and logits
    PROMPT/greedy                          the tokens that greedy decoding adds
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

OUTPUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "vision" / "llava"
EDGE, PATCH = 35, 7
NEW_TOKENS = 64
LEAST_MARGIN = 0.005
"""Between the best and the second logit of a greedy step, so that rounding decides nothing."""
SEVERAL = [1, -1]
"""Hidden states whose features are put side by side."""

PICTURES = {"wide": (41, 67), "tall": (66, 38), "square": (35, 35), "tiny": (9, 12)}
"""Height and width."""
PROMPTS = {
    "text": ("USER: What is the capital of Italy? ASSISTANT:", []),
    "one": ("USER: <image>\nWhat is in the picture? ASSISTANT:", ["wide"]),
    "two": ("USER: <image>\nOne, and <image>\nanother: which is red? ASSISTANT:", ["tall", "wide"]),
    "sizes": ("USER: <image><image><image>\nThree. ASSISTANT:", ["square", "tiny", "tall"]),
}

TEXT = [
    "USER: What is in the picture? ASSISTANT: A small red house and a green tree by the sea.",
    "USER: Which of them is the larger one? ASSISTANT: The second, because it is nearer to us.",
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "One, two, three and four make ten; five and six make eleven.",
    "The sun and the rain: the red, the green and the blue of the sky.",
]
CHAT_TEMPLATE = """\
{% for message in messages %}\
{% if message.role != 'system' %}{{ message.role.upper() + ': ' }}{% endif %}\
{% if message.content is string %}{{ message.content }}{% else %}\
{% for part in message.content if part.type == 'image' %}{{ '<image>\n' }}{% endfor %}\
{% for part in message.content if part.type == 'text' %}{{ part.text }}{% endfor %}\
{% endif %}{{ ' ' if message.role != 'assistant' else eos_token }}\
{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"""
LEARNED = 189
"""Tokens besides <image> and <pad>, which come last."""


def main() -> None:
    torch.set_num_threads(1)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    processor = make_processor()
    config = LlavaConfig(**fields())
    pictures = {name: picture(*size, seed) for seed, (name, size) in enumerate(PICTURES.items())}
    for seed in range(1000):
        model = random_model(config, seed)
        expected = prompts_expected(model, processor, pictures)
        if expected is not None:
            break
    else:
        raise RuntimeError("No seed gives clear greedy tokens; widen the weights.")
    print(f"seed {seed}")
    expected |= pictures_expected(model, processor, pictures)
    expected |= several_expected(model, expected["wide/pixels"])
    expected["names"] = np.array(list(model.state_dict()))
    np.savez_compressed(OUTPUT / "expected.npz", **expected)
    tensors = {old_name(name): value.contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, OUTPUT / "model.safetensors", metadata={"format": "pt"})
    write_json("config.json", fields())
    write_json("config_v5.json", config.to_dict())
    write_json("preprocessor_config.json", preprocessor_fields())


def fields() -> dict[str, Any]:
    """As in config.json of LLaVA-1.5, which leaves out what is as in Llama 7B and in CLIP."""
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_token_index": LEARNED,
        "image_seq_length": (EDGE // PATCH) ** 2,
        "model_type": "llava",
        "pad_token_id": LEARNED + 1,
        "projector_hidden_act": "gelu",
        "text_config": {
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": 32,
            "intermediate_size": 48,
            "max_position_embeddings": 256,
            "model_type": "llama",
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-05,
            "torch_dtype": "float32",
            "vocab_size": 192,
        },
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "vision_config": {
            "hidden_size": 32,
            "image_size": EDGE,
            "intermediate_size": 64,
            "model_type": "clip_vision_model",
            "num_attention_heads": 2,
            "num_hidden_layers": 3,
            "patch_size": PATCH,
            "projection_dim": 24,
            "vocab_size": 192,
        },
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "vocab_size": 192,
    }


def preprocessor_fields() -> dict[str, Any]:
    return {
        "crop_size": {"height": EDGE, "width": EDGE},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "CLIPImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "processor_class": "LlavaProcessor",
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": EDGE},
    }


def old_name(name: str) -> str:
    """As files have it that `transformers` 4 saved."""
    for new, old in (
        ("lm_head.", "language_model.lm_head."),
        ("model.language_model.", "language_model.model."),
        ("model.vision_tower.", "vision_tower.vision_model."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
    ):
        if name.startswith(new):
            return old + name.removeprefix(new)
    raise RuntimeError(f"The tensor {name} is new; add its old name.")


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """Waves with noise, uint8 [H, W, 3]."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (3 + c + seed) + y / (5 + c)) * 90 + 128 for c in range(3)]
    noisy = np.stack(waves, -1) + random.normal(0, 25, (height, width, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def make_processor() -> LlavaProcessor:
    (OUTPUT / "tokenizer.json").write_text(make_tokenizer().to_str(), "utf-8")
    write_json(
        "tokenizer_config.json",
        {
            "bos_token": "<s>",
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "eos_token": "</s>",
            "pad_token": "<pad>",
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": "<unk>",
        },
    )
    return LlavaProcessor(
        CLIPImageProcessorPil(**preprocessor_fields()),
        PreTrainedTokenizerFast.from_pretrained(OUTPUT),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def make_tokenizer() -> Tokenizer:
    """BPE over characters, leading spaces as Llama 2 has them, and <image> and <pad> behind."""
    special = ["<unk>", "<s>", "</s>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=LEARNED,
        special_tokens=special,
        initial_alphabet=["\n", *map(chr, range(33, 127))],
        max_token_length=8,
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_special_tokens(["<image>", "<pad>"])
    if tokenizer.token_to_id("<image>") != LEARNED:
        raise RuntimeError("The tokenizer learned another number of tokens than LEARNED.")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(content=" ", left=1, right=0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def random_model(config: LlavaConfig, seed: int) -> Any:
    """Weights of which pictures and text both show in the logits."""
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration._from_config(
        config, attn_implementation="eager", dtype=torch.float32
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.3)
            elif "norm" in name:
                parameter.normal_(1, 0.3)
            elif "embed_tokens" in name or "class_embedding" in name or "position" in name:
                parameter.normal_(0, 1.0)
            elif "patch_embedding" in name:
                parameter.normal_(0, 0.15)
            else:
                parameter.normal_(0, 0.25)
    return model.eval()


@torch.no_grad()
def prompts_expected(
    model: Any, processor: LlavaProcessor, pictures: dict[str, np.ndarray]
) -> dict[str, np.ndarray] | None:
    """None where greedy tokens are nearly a tie, all the same, or special."""
    expected = {}
    for name, (text, names) in PROMPTS.items():
        images = [Image.fromarray(pictures[n]) for n in names]
        inputs = dict(processor(images=images or None, text=text, return_tensors="pt"))
        del inputs["attention_mask"]
        prompt, logits, greedy = inputs["input_ids"], None, []
        for _ in range(NEW_TOKENS):
            last = model(**inputs, use_cache=False).logits[0]
            logits = last if logits is None else logits
            best = last[-1].topk(2)
            token = int(best.indices[0])
            if best.values[0] - best.values[1] < LEAST_MARGIN or token < 3 or token >= LEARNED:
                return None
            greedy.append(token)
            inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[token]])], 1)
        if len(set(greedy)) < 12:
            return None
        expected |= {
            f"{name}/text": np.array(text),
            f"{name}/pictures": np.array(names, dtype=np.str_),
            f"{name}/prompt": prompt[0].numpy().astype(np.int32),
            f"{name}/logits": logits.numpy(),
            f"{name}/greedy": np.array(greedy, np.int32),
        }
    return expected


@torch.no_grad()
def pictures_expected(
    model: Any, processor: LlavaProcessor, pictures: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    expected = {}
    for name, array in pictures.items():
        pixels = processor.image_processor(Image.fromarray(array), return_tensors="pt")
        pixels = pixels["pixel_values"]
        expected[f"{name}/picture"] = array
        expected[f"{name}/pixels"] = pixels[0].numpy()
        features = model.get_image_features(
            pixels, vision_feature_layer=-2, vision_feature_select_strategy="default"
        )
        expected[f"{name}/features"] = features.pooler_output[0].numpy()
    first = torch.tensor(expected["wide/pixels"])[None]
    states = model.model.vision_tower(first, output_hidden_states=True).hidden_states
    return expected | {"states": torch.cat(states).numpy()}


@torch.no_grad()
def several_expected(model: Any, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """A model with the same tower and another projector."""
    changed = {
        "vision_feature_layer": SEVERAL,
        "vision_feature_select_strategy": "full",
        "multimodal_projector_bias": False,
    }
    other = random_model(LlavaConfig(**fields() | changed), 0)
    other.model.vision_tower.load_state_dict(model.model.vision_tower.state_dict())
    features = other.get_image_features(
        torch.tensor(pixels)[None],
        vision_feature_layer=SEVERAL,
        vision_feature_select_strategy="full",
    )
    projector = other.model.multi_modal_projector
    return {
        "several/linear_1": projector.linear_1.weight.numpy(),
        "several/linear_2": projector.linear_2.weight.numpy(),
        "several/features": features.pooler_output[0].numpy(),
    }


def write_json(name: str, content: Any) -> None:
    (OUTPUT / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
