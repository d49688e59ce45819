"""Makes tests/fixtures/vision/phi3_v: a tiny random Phi-3-vision and what is expected of it.

Run by hand, with torch and transformers installed: `python scripts/make_phi3_v_fixtures.py`.
`transformers` has no such model. The tower is its CLIPVisionModel and the text its Phi3ForCausalLM;
how pictures are cut, and what joins, separates and projects patches, is written here a second time,
plainly. expected.npz holds

    PICTURE/picture, /num_crops, /size   uint8 [H, W, 3], and the padded picture's height and width
    PICTURE/crops                        every 67th pixel along height and width
    PICTURE/tower                        every 41st patch of each crop
    PICTURE/features                     of every row some columns
    PROMPT/pictures, /prompt             names, and token ids with a placeholder for each feature
    PROMPT/kept, /logits                 some tokens of the prompt, and their logits
    PROMPT/greedy                        the tokens that greedy decoding adds

Rope factors that depend on the length are fixed for `max_model_len`, as the engine does.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

OUTPUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "vision" / "phi3_v"
SIDE, PATCH, ACROSS = 336, 14, 24
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
MAX_MODEL_LEN = 4096
NEW_TOKENS = 64
LEAST_MARGIN = 0.003
"""Between the best and the second logit of a greedy step, so that rounding decides nothing."""
COLUMNS = slice(0, None, 7)
"""Of features, in the file."""

PICTURES = {
    "square": (40, 40, 4),
    "wide": (20, 40, 4),
    "tall": (39, 13, 4),
    "tiny": (3, 5, 16),
    "many": (31, 30, 16),
}
"""Height, width and the most crops."""
PROMPTS: dict[str, list[int | str]] = {
    "text": [29],
    "one": [5, "square", 12],
    "two": [6, "wide", 4, "tall", 9],
    "long": [3, "tiny", 7, "square", 5],
}
"""Lengths of random text, and pictures."""

SPECIAL = ["<unk>", "<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
IMAGE = "<|image|>"
TEXT = [
    "What is in this picture? A bird on a branch.",
    "The chart shows 0123456789 ships, more than in the year before.",
    "Compare <|image_1|> and <|image_2|>.",
]
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)

VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
ROPE = {"short_factor": [1.0, 1.2, 1.5, 1.7], "long_factor": [1.3, 2.0, 3.5, 6.0]}
TEXT_MODEL = {
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "original_max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "sliding_window": 8192,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}


class Reference:
    """The model with random weights."""

    def __init__(self, seed: int, vocab_size: int, image_token: int) -> None:
        torch.manual_seed(seed)
        self.image_token = image_token
        self.tower = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION)).eval()
        config = transformers.Phi3Config(
            **TEXT_MODEL,
            vocab_size=vocab_size,
            rope_parameters={"rope_type": "longrope", **ROPE},
            **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
        )
        self.text = transformers.Phi3ForCausalLM(config).eval()
        for model in (self.tower, self.text):
            for name, parameter in model.named_parameters():
                randomize(name, parameter)
        fix_rope(self.text.model.rotary_emb, config)
        size, joined = TEXT_MODEL["hidden_size"], 4 * VISION["hidden_size"]
        self.separators = {name: torch.randn(joined) for name in ("glb_GN", "sub_GN")}
        self.projection = {
            "0.weight": 0.2 * torch.randn(size, joined),
            "0.bias": 0.3 * torch.randn(size),
            "2.weight": 0.3 * torch.randn(size, size),
            "2.bias": 0.3 * torch.randn(size),
        }

    @torch.no_grad()
    def patches(self, crops: np.ndarray) -> np.ndarray:
        """[N, 576, C]: patches after the last layer but one, without the class token."""
        out = self.tower(torch.tensor(crops), output_hidden_states=True)
        return out.hidden_states[-2][:, 1:].numpy()

    def features(self, patches: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """What stands for a picture, from its patches, those of the whole first."""
        whole, squares = patches[0], patches[1:]
        large = np.zeros((size[0] // PATCH, size[1] // PATCH, squares.shape[-1]))
        corners = [(y, x) for y in range(0, size[0], SIDE) for x in range(0, size[1], SIDE)]
        for (y, x), square in zip(corners, squares, strict=True):
            top, left = y // PATCH, x // PATCH
            large[top : top + ACROSS, left : left + ACROSS] = square.reshape(ACROSS, ACROSS, -1)
        rows = self.joined(large)
        rows.append(self.separators["glb_GN"].numpy())
        rows += self.joined(whole.reshape(ACROSS, ACROSS, -1))
        w = {name: tensor.numpy().astype(np.float64) for name, tensor in self.projection.items()}
        hidden = np.stack(rows) @ w["0.weight"].T + w["0.bias"]
        hidden = hidden / 2 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
        return (hidden @ w["2.weight"].T + w["2.bias"]).astype(np.float32)

    def joined(self, grid: np.ndarray) -> list[np.ndarray]:
        """Squares of 2x2 patches row by row, and what ends each row."""
        rows = []
        for y in range(0, grid.shape[0], 2):
            for x in range(0, grid.shape[1], 2):
                corners = (grid[y, x], grid[y, x + 1], grid[y + 1, x], grid[y + 1, x + 1])
                rows.append(np.concatenate(corners))
            rows.append(self.separators["sub_GN"].numpy())
        return rows

    @torch.no_grad()
    def complete(
        self, prompt: np.ndarray, features: np.ndarray
    ) -> tuple[np.ndarray, list[int], float]:
        """Logits of the prompt, the greedy tokens, and the least margin between two logits."""
        tokens = torch.tensor(prompt)
        embedded = self.text.model.embed_tokens(tokens)
        embedded[tokens == self.image_token] = torch.tensor(features)
        out = self.text(inputs_embeds=embedded[None], use_cache=True)
        logits, greedy, margin = out.logits[0].numpy(), [], np.inf
        while True:
            best = out.logits[0, -1].topk(2)
            margin = min(margin, float(best.values[0] - best.values[1]))
            greedy.append(int(best.indices[0]))
            if len(greedy) == NEW_TOKENS:
                return logits, greedy, margin
            token = torch.tensor([[greedy[-1]]])
            out = self.text(token, past_key_values=out.past_key_values, use_cache=True)

    def tensors(self) -> dict[str, torch.Tensor]:
        """By the names of the published checkpoints."""
        vision = "model.vision_embed_tokens"
        named = dict(self.text.state_dict())
        for name, tensor in self.tower.state_dict().items():
            bare = name.removeprefix("vision_model.")
            named[f"{vision}.img_processor.vision_model.{bare}"] = tensor
        named[f"{vision}.glb_GN"] = self.separators["glb_GN"][None, None]
        named[f"{vision}.sub_GN"] = self.separators["sub_GN"][None, None, None]
        for name, tensor in self.projection.items():
            named[f"{vision}.img_projection.{name}"] = tensor
        return {name: tensor.contiguous() for name, tensor in named.items()}


@torch.no_grad()
def randomize(name: str, parameter: torch.nn.Parameter) -> None:
    if "embedding" in name:
        parameter.normal_(0, 0.05 if "patch" in name else 0.7)
    elif parameter.ndim == 2:
        parameter.normal_(0, 1.0 if "embed" in name else 0.3)
    else:
        parameter.normal_(1 if name.endswith("weight") else 0, 0.3)


def fix_rope(rotary: Any, config: Any) -> None:
    init = ROPE_INIT_FUNCTIONS["longrope"]
    inv_freq, rotary.attention_scaling = init(config, "cpu", seq_len=MAX_MODEL_LEN)
    rotary.inv_freq.copy_(inv_freq)
    rotary.rope_type = "default"


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """Waves with noise, uint8 [H, W, 3]."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (2 + c + seed) + y / (4 + c)) * 90 + 128 for c in range(3)]
    noise = random.normal(0, 25, (height, width, 3))
    return np.clip(np.stack(waves, -1) + noise, 0, 255).astype(np.uint8)


def cut(array: np.ndarray, num_crops: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Crops [N, 3, 336, 336], the whole first, and height and width of the padded picture."""
    if array.shape[1] < array.shape[0]:
        crops, (width, height) = cut(np.ascontiguousarray(array.swapaxes(0, 1)), num_crops)
        down, across = height // SIDE, width // SIDE
        squares = crops[1:].reshape(across, down, *crops.shape[1:]).swapaxes(0, 1)
        crops = np.concatenate([crops[:1], squares.reshape(-1, *crops.shape[1:])])
        return np.ascontiguousarray(crops.swapaxes(2, 3)), (height, width)
    ratio = array.shape[1] / array.shape[0]
    across = max(k for k in range(1, num_crops + 1) if k * math.ceil(k / ratio) <= num_crops)
    down, lower = math.ceil(across / ratio), int(across * SIDE / ratio)
    resized = Image.fromarray(array).resize((across * SIDE, lower), Image.Resampling.BILINEAR)
    large = np.full((down * SIDE, across * SIDE, 3), 255, np.uint8)
    top = (down * SIDE - lower) // 2
    large[top : top + lower] = np.asarray(resized)
    pixels = torch.tensor(((large / 255 - MEAN) / STD).astype(np.float32)).permute(2, 0, 1)
    whole = torch.nn.functional.interpolate(pixels[None], (SIDE, SIDE), mode="bicubic")
    corners = [(y, x) for y in range(down) for x in range(across)]
    squares = [pixels[:, y * SIDE : (y + 1) * SIDE, x * SIDE : (x + 1) * SIDE] for y, x in corners]
    crops = torch.cat([whole, torch.stack(squares)]).numpy()
    return crops, (down * SIDE, across * SIDE)


def tokenizer() -> Tokenizer:
    """Characters and merges of `TEXT`, spaces as Llama 2 has them, and Phi-3's special tokens."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=95,
        special_tokens=[*SPECIAL, IMAGE],
        initial_alphabet=["\n", *"abcdefghijklmnopqrstuvwxyz"],
        show_progress=False,
    )
    made.train_from_iterator(TEXT, trainer)
    return made


def expect(
    model: Reference, crops: dict[str, tuple[np.ndarray, tuple[int, int]]], vocab_size: int
) -> tuple[dict[str, Any], float]:
    """What is in the file, and the least margin between two logits of greedy steps."""
    random = np.random.default_rng(0)
    expected: dict[str, Any] = {"max_model_len": MAX_MODEL_LEN}
    features, margin = {}, np.inf
    for name, (pixels, size) in crops.items():
        patches = model.patches(pixels)
        features[name] = model.features(patches, size)
        expected[f"{name}/tower"] = patches[:, ::41]
        expected[f"{name}/features"] = features[name][:, COLUMNS]
    for name, parts in PROMPTS.items():
        shown = [part for part in parts if isinstance(part, str)]
        prompt = np.concatenate(
            [
                np.full(len(features[part]), model.image_token)
                if isinstance(part, str)
                else random.integers(len(SPECIAL) + 1, vocab_size, part)
                for part in parts
            ]
        )
        rows = [features[part] for part in shown] or [np.zeros((0, 32), np.float32)]
        logits, greedy, least = model.complete(prompt, np.concatenate(rows))
        margin = min(margin, least if len(set(greedy)) > 9 else 0)
        kept = np.union1d(np.arange(0, len(prompt), 29), np.arange(len(prompt) - 12, len(prompt)))
        expected |= {
            f"{name}/pictures": np.array(shown, dtype="U8"),
            f"{name}/prompt": prompt.astype(np.int32),
            f"{name}/kept": kept.astype(np.int32),
            f"{name}/logits": logits[kept],
            f"{name}/greedy": np.array(greedy, np.int32),
        }
    return expected, margin


def config_json(vocab_size: int, image_token: int) -> dict[str, Any]:
    """With the fields of the published files, and two that a small model needs."""
    return {
        **TEXT_MODEL,
        "architectures": ["Phi3VForCausalLM"],
        "model_type": "phi3_v",
        "torch_dtype": "float32",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "vocab_size": vocab_size,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "su", **ROPE},
        "embd_layer": {
            "embedding_cls": "image",
            "hd_transform_order": "sub_glb",
            "projection_cls": "mlp",
            "use_hd_transform": True,
            "with_learnable_separator": True,
        },
        "img_processor": {
            "image_dim_out": VISION["hidden_size"],
            "model_name": "openai/clip-vit-large-patch14-336",
            "name": "clip_vision_model",
            "num_img_tokens": 144,
        },
        "vision_config": VISION,
        "image_token_id": image_token,
    }


def write_json(name: str, content: Any) -> None:
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    (OUTPUT / name).write_text(text + "\n", "utf-8")


def main() -> None:
    torch.set_num_threads(1)
    made = tokenizer()
    vocab_size, image_token = made.get_vocab_size(), made.token_to_id(IMAGE)
    arrays = {name: picture(h, w, i) for i, (name, (h, w, _)) in enumerate(PICTURES.items())}
    crops = {name: cut(array, PICTURES[name][2]) for name, array in arrays.items()}
    for seed in range(1000):
        model = Reference(seed, vocab_size, image_token)
        expected, margin = expect(model, crops, vocab_size)
        print(f"seed {seed}: margin {margin:.4f}")
        if margin > LEAST_MARGIN:
            break
    else:
        raise RuntimeError("No seed gives clear greedy tokens; widen the weights.")
    for name, (pixels, size) in crops.items():
        expected[f"{name}/picture"] = arrays[name]
        expected[f"{name}/num_crops"] = PICTURES[name][2]
        expected[f"{name}/size"] = np.array(size, np.int32)
        expected[f"{name}/crops"] = pixels[:, :, ::67, ::67]
    OUTPUT.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(OUTPUT / "expected.npz", **expected)
    save_file(model.tensors(), OUTPUT / "model.safetensors", metadata={"format": "pt"})
    write_json("config.json", config_json(vocab_size, image_token))
    write_json(
        "preprocessor_config.json",
        {
            "image_processor_type": "Phi3VImageProcessor",
            "processor_class": "Phi3VProcessor",
            "do_convert_rgb": True,
            "image_mean": MEAN,
            "image_std": STD,
            "num_crops": 4,
            "num_img_tokens": 144,
        },
    )
    (OUTPUT / "tokenizer.json").write_text(made.to_str() + "\n", "utf-8")
    write_json(
        "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "bos_token": "<s>",
            "eos_token": "<|endoftext|>",
            "unk_token": "<unk>",
            "chat_template": TEMPLATE,
        },
    )


if __name__ == "__main__":
    main()
