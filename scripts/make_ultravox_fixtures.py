"""Makes tests/fixtures/audio/ultravox: a tiny random Ultravox and what it computes.

Run by hand, with torch and transformers installed: `python scripts/make_ultravox_fixtures.py`.
The tower and the text model are those of `transformers`; what joins them is written here, after
the description of the published models. config.json and the names of tensors are as in published
files, all parts in one. expected.npz holds

    CLIP/samples             int16 [N], of 16 kHz
    CLIP/mels                what the feature extractor (in numpy) gives of the clip alone
    CLIP/features            what the language model gets
    CLIP/old_features        and what it gets from a projector that ends with the norm `old/ln_post`
    PROMPT/clips             the names of a prompt's clips
    PROMPT/prompt, /logits   its tokens, a placeholder for each feature, and logits
    PROMPT/greedy            the tokens that greedy decoding adds
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

OUTPUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "audio" / "ultravox"
VOCAB, AUDIO_TOKEN = 128, 127
WIDTH, STACK, MIDDLE = 32, 4, 24
FRAMES = 100
"""That the tower takes."""
NEW_TOKENS = 64
LEAST_MARGIN = 0.005
"""Between the best and the second logit of a greedy step, so that rounding decides nothing."""

CLIPS = {"long": 34600, "full": 16000, "short": 5000, "odd": 9700, "tiny": 100}
"""Samples. `long` is of three pieces, the last odd; `odd` has an odd number of frames and a stack
that lacks states, and `tiny` is shorter than the two frames that a clip is padded to."""
PROMPTS = {
    "text": ([5, 17, 60, 3, 99, 42, 8], []),
    "one": ([5, 17, None, 60, 3, 42], ["short"]),
    "two": ([7, None, 80, 81, None, 33, 12], ["odd", "long"]),
    "three": ([None, None, None, 64, 20], ["full", "tiny", "short"]),
}
"""None is a clip."""
SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
TEMPLATE = (
    "{{ '<|begin_of_text|>' }}"
    "{%- for message in messages -%}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{ message['content'] + '<|eot_id|>' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{%- endif -%}"
)
"""Takes text alone, as that of Llama 3 does."""


class Projector(nn.Module):
    """With norms both after the gate and at the end, of which a model has one."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_pre = nn.RMSNorm(WIDTH * STACK, eps=1e-6)
        self.linear_1 = nn.Linear(WIDTH * STACK, 2 * MIDDLE, bias=False)
        self.ln_mid = nn.RMSNorm(MIDDLE, eps=1e-6)
        self.linear_2 = nn.Linear(MIDDLE, WIDTH, bias=False)
        self.ln_post = nn.RMSNorm(WIDTH, eps=1e-6)

    def forward(self, states: torch.Tensor, old: bool) -> torch.Tensor:
        missing = -states.shape[0] % STACK
        stacks = functional.pad(states, (0, 0, 0, missing)).reshape(-1, WIDTH * STACK)
        value, gate = self.linear_1(self.ln_pre(stacks)).split(MIDDLE, dim=-1)
        gated = value * gate * torch.sigmoid(gate)
        return self.ln_post(self.linear_2(gated)) if old else self.linear_2(self.ln_mid(gated))


class Ultravox(nn.Module):
    """Its modules have the names that published tensors begin with."""

    def __init__(self) -> None:
        super().__init__()
        audio, text = WhisperConfig(**fields()["audio_config"]), fields()["text_config"]
        self.audio_tower = WhisperEncoder._from_config(audio, attn_implementation="eager")
        self.multi_modal_projector = Projector()
        self.language_model = LlamaForCausalLM(LlamaConfig(**text))


def main() -> None:
    torch.set_num_threads(1)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    write_tokenizer()
    extractor = WhisperFeatureExtractor(**preprocessor_fields())
    expected: dict[str, np.ndarray] = {}
    for seed, (name, size) in enumerate(CLIPS.items()):
        expected[f"{name}/samples"] = sound(size, seed)
        expected[f"{name}/mels"] = log_mels(extractor, expected[f"{name}/samples"])
    for seed in range(1000):
        model = random_model(seed)
        features = {name: features_of(model, expected[f"{name}/mels"]) for name in CLIPS}
        if (prompts := prompts_expected(model, features)) is not None:
            break
    else:
        raise RuntimeError("No seed gives clear greedy tokens; widen the weights.")
    print(f"seed {seed}")
    check_tower(model, expected["full/mels"])
    expected |= prompts | {f"{name}/features": rows for name, rows in features.items()}
    for name in CLIPS:
        expected[f"{name}/old_features"] = features_of(model, expected[f"{name}/mels"], old=True)
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    expected["old/ln_post"] = tensors.pop("multi_modal_projector.ln_post.weight").numpy()
    np.savez_compressed(OUTPUT / "expected.npz", **expected)
    save_file(tensors, OUTPUT / "model.safetensors", metadata={"format": "pt"})
    write_json("config.json", fields())
    write_json("preprocessor_config.json", preprocessor_fields())


def fields() -> dict[str, Any]:
    return {
        "architectures": ["UltravoxModel"],
        "audio_config": {
            "activation_function": "gelu",
            "d_model": WIDTH,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "encoder_layers": 2,
            "max_source_positions": FRAMES // 2,
            "model_type": "whisper",
            "num_mel_bins": 16,
            "scale_embedding": False,
        },
        "audio_latency_block_size": None,
        "audio_model_id": None,
        "audio_token_index": AUDIO_TOKEN,
        "hidden_size": 2 * MIDDLE,
        "ignore_index": -100,
        "model_type": "ultravox",
        "norm_init": 0.4,
        "projector_act": "swiglu",
        "projector_ln_mid": True,
        "stack_factor": STACK,
        "text_config": {
            "hidden_size": WIDTH,
            "intermediate_size": 48,
            "max_position_embeddings": 256,
            "model_type": "llama",
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000.0,
            "torch_dtype": "float32",
            "vocab_size": VOCAB,
        },
        "text_model_id": None,
        "torch_dtype": "float32",
        "vocab_size": VOCAB,
    }


def write_tokenizer() -> None:
    """A token for each character, the marks of conversations, and the placeholder last."""
    words = [*SPECIAL, "\n", *map(chr, range(32, 127))]
    words += [f"<|reserved_special_token_{i}|>" for i in range(AUDIO_TOKEN - len(words))]
    vocab = {word: token for token, word in enumerate([*words, "<|audio|>"])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=SPECIAL[1]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([*SPECIAL, "<|audio|>"])
    (OUTPUT / "tokenizer.json").write_text(tokenizer.to_str(), "utf-8")
    write_json(
        "tokenizer_config.json",
        {
            "bos_token": "<|begin_of_text|>",
            "chat_template": TEMPLATE,
            "eos_token": "<|eot_id|>",
            "model_max_length": 131072,
            "pad_token": "<|eot_id|>",
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )


def preprocessor_fields() -> dict[str, Any]:
    return {
        "chunk_length": 1,
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": 16,
        "hop_length": 160,
        "n_fft": 400,
        "n_samples": 16000,
        "nb_max_frames": FRAMES,
        "padding_side": "right",
        "padding_value": 0.0,
        "processor_class": "UltravoxProcessor",
        "return_attention_mask": False,
        "sampling_rate": 16000,
    }


def sound(size: int, seed: int) -> np.ndarray:
    """A rising tone that swells, with noise, int16 [size]."""
    random = np.random.default_rng(seed)
    time = np.arange(size) / 16000
    tone = np.sin(2 * np.pi * (200 + 150 * seed + 2000 * time) * time) * np.sin(9 * time) * 9000
    return (tone + random.normal(0, 300, size)).astype(np.int16)


def log_mels(extractor: WhisperFeatureExtractor, samples: np.ndarray) -> np.ndarray:
    """Mels float32 [M, T] of the extractor in numpy, of the clip's own length in whole frames."""
    values = samples.astype(np.float32) / 32768
    values = np.pad(values, (0, max(0, 2 * extractor.hop_length - len(values))))
    options = {"padding": "longest", "pad_to_multiple_of": extractor.hop_length}
    whole = extractor(
        values, sampling_rate=16000, truncation=False, return_attention_mask=True, **options
    )
    padded = np.pad(values, (0, -len(values) % extractor.hop_length))[None]
    mels = extractor._np_extract_fbank_features(padded, "cpu")[0].astype(np.float32)
    np.testing.assert_allclose(mels, whole["input_features"][0], rtol=0, atol=1e-3)
    assert np.all(whole["attention_mask"]), "a clip's own frames are all heard"
    return mels


def random_model(seed: int) -> Ultravox:
    """Weights of which sounds and text both show in the logits."""
    torch.manual_seed(seed)
    model = Ultravox()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.3)
            elif "norm" in name or ".ln_" in name:
                parameter.normal_(1, 0.3)
            elif "embed" in name:
                parameter.normal_(0, 1.0)
            elif "conv" in name:
                parameter.normal_(0, 0.15)
            else:
                parameter.normal_(0, 0.25)
    return model.eval()


@torch.no_grad()
def features_of(model: Ultravox, mels: np.ndarray, old: bool = False) -> np.ndarray:
    """Of a clip in pieces of FRAMES; the last of several is padded, which is not attended to."""
    rows = []
    for start in range(0, mels.shape[1], FRAMES):
        piece = mels[:, start : start + FRAMES]
        frames = piece.shape[1]
        if start:
            piece = np.pad(piece, ((0, 0), (0, FRAMES - frames)))
        states = tower(model.audio_tower, torch.tensor(piece), frames)
        rows.append(model.multi_modal_projector(states, old)[: -(-frames // (2 * STACK))])
    return torch.cat(rows).numpy()


def tower(encoder: Any, mels: torch.Tensor, frames: int) -> torch.Tensor:
    """States of mels [M, T] of any length up to FRAMES; those of the first `frames` are attended
    to. The encoder's own forward takes FRAMES alone and has no mask."""
    x = functional.gelu(encoder.conv2(functional.gelu(encoder.conv1(mels[None]))))
    x = x.transpose(1, 2)
    x = x + encoder.embed_positions.weight[: x.shape[1]]
    heard = torch.arange(x.shape[1]) < -(-frames // 2)
    mask = torch.zeros(1, 1, 1, x.shape[1]).masked_fill(~heard, torch.finfo(x.dtype).min)
    for layer in encoder.layers:
        x = layer(x, mask)
    return encoder.layer_norm(x)[0]


@torch.no_grad()
def check_tower(model: Ultravox, mels: np.ndarray) -> None:
    """A clip that fills the tower is as in its own forward."""
    own = model.audio_tower(torch.tensor(mels)[None]).last_hidden_state[0]
    torch.testing.assert_close(tower(model.audio_tower, torch.tensor(mels), FRAMES), own)


@torch.no_grad()
def prompts_expected(
    model: Ultravox, features: dict[str, np.ndarray]
) -> dict[str, np.ndarray] | None:
    """None where greedy tokens are nearly a tie, all the same, or the placeholder."""
    embed = model.language_model.get_input_embeddings()
    results = {}
    for name, (text, names) in PROMPTS.items():
        rest, prompt = iter(names), []
        for token in text:
            count = 1 if token is not None else len(features[next(rest)])
            prompt += [AUDIO_TOKEN if token is None else token] * count
        heard = torch.tensor(prompt) == AUDIO_TOKEN
        logits, greedy = None, []
        for _ in range(NEW_TOKENS):
            x = embed(torch.tensor(prompt + greedy))
            if names:
                rows = np.concatenate([features[each] for each in names])
                x[: len(prompt)][heard] = torch.tensor(rows)
            last = model.language_model(inputs_embeds=x[None], use_cache=False).logits[0]
            logits = last if logits is None else logits
            best = last[-1].topk(2)
            token = int(best.indices[0])
            if best.values[0] - best.values[1] < LEAST_MARGIN or token == AUDIO_TOKEN:
                return None
            greedy.append(token)
        if len(set(greedy)) < 12:
            return None
        results |= {
            f"{name}/clips": np.array(names, dtype=np.str_),
            f"{name}/prompt": np.array(prompt, np.int32),
            f"{name}/logits": logits.numpy(),
            f"{name}/greedy": np.array(greedy, np.int32),
        }
    return results


def write_json(name: str, content: Any) -> None:
    (OUTPUT / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
