"""Makes tests/fixtures/audio/qwen2_audio: a tiny random Qwen2-Audio and what it computes.

Run by hand, with torch and transformers installed: `python scripts/make_qwen2_audio_fixtures.py`.
config.json and the names of tensors are as in the files of Qwen2-Audio-7B; config_v5.json is what
`transformers` 5 makes of it. expected.npz holds

    CLIP/samples                 int16 [N], of 16 kHz
    CLIP/mels, /mask, /features  what the feature extractor (in numpy) and the projector give
    full/CLIP                    mels of 128 bins and 30 s, at the frames `full/frames`
    names                        of tensors in the newest layout
    PROMPT/clips                 the names of a prompt's clips
    PROMPT/prompt, /logits       its tokens, a placeholder for each feature, and logits
    PROMPT/greedy                the tokens that greedy decoding adds
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    WhisperFeatureExtractor,
)

OUTPUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "audio" / "qwen2_audio"
VOCAB, AUDIO_TOKEN = 128, 127
NEW_TOKENS = 64
LEAST_MARGIN = 0.005
"""Between the best and the second logit of a greedy step, so that rounding decides nothing."""

CLIPS = {"long": 18000, "short": 5000, "odd": 9700, "tiny": 700}
"""Samples; the tower takes 16,000. `odd` has an odd number of states, `tiny` one feature."""
PROMPTS = {
    "text": ([5, 17, 60, 3, 99, 42, 8], []),
    "one": ([5, 17, None, 60, 3, 42], ["short"]),
    "two": ([7, None, 80, 81, None, 33, 12], ["odd", "long"]),
    "three": ([None, None, None, 64, 20], ["long", "tiny", "short"]),
}
"""None is a clip."""
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|audio_bos|>", "<|audio_eos|>")
TEMPLATE = (
    "{%- set heard = namespace(clips=0) -%}"
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if 'audio' in part -%}{%- set heard.clips = heard.clips + 1 -%}"
    "{{ 'Audio ' ~ heard.clips ~ ': <|audio_bos|><|AUDIO|><|audio_eos|>\n' }}"
    "{%- else -%}{{ part['text'] }}{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{{ '<|im_end|>\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
"""Shows clips as that of Qwen2-Audio-7B-Instruct does."""


def main() -> None:
    torch.set_num_threads(1)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    write_tokenizer()
    extractor = WhisperFeatureExtractor(**preprocessor_fields())
    config = Qwen2AudioConfig(**fields())
    clips = {name: sound(size, seed) for seed, (name, size) in enumerate(CLIPS.items())}
    expected = {f"{name}/samples": samples for name, samples in clips.items()}
    for name, samples in clips.items():
        expected[f"{name}/mels"], expected[f"{name}/mask"] = log_mels(extractor, samples)
    for seed in range(1000):
        model = random_model(config, seed)
        features = {name: features_of(model, expected, name) for name in CLIPS}
        prompts = prompts_expected(model, expected, features)
        if prompts is not None:
            break
    else:
        raise RuntimeError("No seed gives clear greedy tokens; widen the weights.")
    print(f"seed {seed}")
    expected |= prompts | {f"{name}/features": rows for name, rows in features.items()}
    expected |= full_expected(clips)
    expected["names"] = np.array(list(model.state_dict()))
    np.savez_compressed(OUTPUT / "expected.npz", **expected)
    tensors = {old_name(name): value.contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, OUTPUT / "model.safetensors", metadata={"format": "pt"})
    write_json("config.json", fields())
    write_json("config_v5.json", config.to_dict())
    write_json("preprocessor_config.json", preprocessor_fields())


def fields() -> dict[str, Any]:
    return {
        "architectures": ["Qwen2AudioForConditionalGeneration"],
        "audio_config": {
            "activation_function": "gelu",
            "d_model": 32,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "encoder_layerdrop": 0.0,
            "encoder_layers": 2,
            "max_source_positions": 50,
            "model_type": "qwen2_audio_encoder",
            "num_mel_bins": 16,
            "scale_embedding": False,
        },
        "audio_token_index": AUDIO_TOKEN,
        "ignore_index": -100,
        "model_type": "qwen2_audio",
        "text_config": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "max_position_embeddings": 256,
            "model_type": "qwen2",
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000,
            "sliding_window": 32768,
            "torch_dtype": "float32",
            "use_mrope": False,
            "vocab_size": VOCAB,
        },
        "torch_dtype": "float32",
        "vocab_size": VOCAB,
    }


def write_tokenizer() -> None:
    """A token for each character, the marks of conversations, and the placeholder last."""
    words = [*SPECIAL, "\n", *map(chr, range(32, 127))]
    words += [f"<|extra_{i}|>" for i in range(AUDIO_TOKEN - len(words))]
    vocab = {word: token for token, word in enumerate([*words, "<|AUDIO|>"])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=SPECIAL[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([*SPECIAL, "<|AUDIO|>"])
    (OUTPUT / "tokenizer.json").write_text(tokenizer.to_str(), "utf-8")
    write_json(
        "tokenizer_config.json",
        {
            "chat_template": TEMPLATE,
            "eos_token": "<|im_end|>",
            "model_max_length": 8192,
            "pad_token": "<|endoftext|>",
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
        "nb_max_frames": 100,
        "padding_side": "right",
        "padding_value": 0.0,
        "processor_class": "Qwen2AudioProcessor",
        "return_attention_mask": True,
        "sampling_rate": 16000,
    }


def old_name(name: str) -> str:
    """As files have it that `transformers` 4 saved."""
    for new, old in (
        ("lm_head.", "language_model.lm_head."),
        ("model.language_model.", "language_model.model."),
        ("model.audio_tower.", "audio_tower."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
    ):
        if name.startswith(new):
            return old + name.removeprefix(new)
    raise RuntimeError(f"The tensor {name} is new; add its old name.")


def sound(size: int, seed: int) -> np.ndarray:
    """A rising tone that swells, with noise, int16 [size]."""
    random = np.random.default_rng(seed)
    time = np.arange(size) / 16000
    tone = np.sin(2 * np.pi * (200 + 150 * seed + 2000 * time) * time) * np.sin(9 * time) * 9000
    return (tone + random.normal(0, 300, size)).astype(np.int16)


def log_mels(
    extractor: WhisperFeatureExtractor, samples: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mels float32 [M, T] of the extractor in numpy, and its mask."""
    values = samples.astype(np.float32) / 32768
    whole = extractor(values, sampling_rate=16000, return_attention_mask=True)
    padded = np.zeros((1, extractor.n_samples), np.float32)
    padded[0, : len(values)] = values[: extractor.n_samples]
    mels = extractor._np_extract_fbank_features(padded, "cpu")[0].astype(np.float32)
    np.testing.assert_allclose(mels, whole["input_features"][0], rtol=0, atol=1e-3)
    return mels, np.asarray(whole["attention_mask"][0], bool)


def full_expected(clips: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    changed = {"chunk_length": 30, "feature_size": 128}
    extractor = WhisperFeatureExtractor(**preprocessor_fields() | changed)
    frames = np.r_[:120:3, 108:118, 120:3000:480]
    mels = {f"full/{name}": log_mels(extractor, clips[name])[0][:, frames] for name in clips}
    return mels | {"full/frames": frames}


def random_model(config: Qwen2AudioConfig, seed: int) -> Any:
    """Weights of which sounds and text both show in the logits."""
    torch.manual_seed(seed)
    model = Qwen2AudioForConditionalGeneration._from_config(
        config, attn_implementation="eager", dtype=torch.float32
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.3)
            elif "norm" in name:
                parameter.normal_(1, 0.3)
            elif "embed" in name:
                parameter.normal_(0, 1.0)
            elif "conv" in name:
                parameter.normal_(0, 0.15)
            else:
                parameter.normal_(0, 0.25)
    return model.eval()


def inputs_of(expected: dict[str, np.ndarray], names: list[str]) -> dict[str, torch.Tensor]:
    if not names:
        return {}
    return {
        "input_features": torch.tensor(np.stack([expected[f"{name}/mels"] for name in names])),
        "feature_attention_mask": torch.tensor(
            np.stack([expected[f"{name}/mask"] for name in names]).astype(np.int64)
        ),
    }


def num_features(expected: dict[str, np.ndarray], name: str) -> int:
    return ((int(expected[f"{name}/mask"].sum()) - 1) // 2 + 1 - 2) // 2 + 1


@torch.no_grad()
def features_of(model: Any, expected: dict[str, np.ndarray], name: str) -> np.ndarray:
    """What the projector gives of a clip whose placeholders are next to one that has several."""
    caught: list[torch.Tensor] = []
    hook = model.model.multi_modal_projector.register_forward_hook(
        lambda module, args, output: caught.append(output)
    )
    names = [name, "short"]
    count = sum(num_features(expected, each) for each in names)
    model(input_ids=torch.full((1, count), AUDIO_TOKEN), **inputs_of(expected, names))
    hook.remove()
    return caught[0][0, : num_features(expected, name)].numpy()


@torch.no_grad()
def prompts_expected(
    model: Any, expected: dict[str, np.ndarray], features: dict[str, np.ndarray]
) -> dict[str, np.ndarray] | None:
    """None where greedy tokens are nearly a tie, all the same, or the placeholder."""
    results = {}
    for name, (text, names) in PROMPTS.items():
        inputs, rest, prompt = inputs_of(expected, names), iter(names), []
        for token in text:
            count = 1 if token is not None else len(features[next(rest)])
            prompt += [AUDIO_TOKEN if token is None else token] * count
        logits, greedy = None, []
        for _ in range(NEW_TOKENS):
            last = model(input_ids=torch.tensor([prompt + greedy]), use_cache=False, **inputs)
            logits = last.logits[0] if logits is None else logits
            best = last.logits[0, -1].topk(2)
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
