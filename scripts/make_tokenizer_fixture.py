"""Writes the small tokenizers of the tests, in Hugging Face layout, to tests/fixtures/tokenizers/.

    python scripts/make_tokenizer_fixture.py [FOLDER]

byte_level: byte-level BPE in a tokenizer.json, with special tokens and a ChatML template.
opt:        the same vocabulary as vocab.json and merges.txt alone, as OPT checkpoints have it.
metaspace:  BPE over characters with byte fallback and leading spaces, as Llama 2 has it.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

ROOT = Path(__file__).parents[1]
TEXT = [
    "Once upon a time there was a small engine that read many books.",
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "Hello, my name is Ada. The future of reading is bright, they said.",
    "One, two, three and four make ten; five and six make eleven.",
    "The sun and the rain: the red, the green and the blue of the sky.",
    "Ask me anything, and the answer is here, there, and everywhere.",
]
CHATML = (ROOT / "examples" / "template_chatml.jinja").read_text("utf-8")


def byte_level() -> Tokenizer:
    """256 bytes, three special tokens and the merges that `TEXT` gives, 320 in all."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def metaspace() -> Tokenizer:
    """<unk>, <s>, </s>, 256 byte tokens, and characters and merges of `TEXT`, 360 in all."""
    special = ["<unk>", "<s>", "</s>"]
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=360 - 256, special_tokens=special, show_progress=False)
    trained.train_from_iterator(TEXT, trainer)
    model = json.loads(trained.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].__getitem__)[len(special) :]
    names = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={name: index for index, name in enumerate(names)},
            merges=[tuple(merge) for merge in model["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.add_special_tokens(special)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False) + "\n", "utf-8")


def write_fast(folder: Path, tokenizer: Tokenizer, config: dict[str, Any]) -> None:
    """A folder with tokenizer.json, taken as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), "utf-8")
    fixed = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    write_json(folder / "tokenizer_config.json", fixed | config)


def write_opt(folder: Path, tokenizer: Tokenizer) -> None:
    """The files of facebook/opt-125m: special tokens first, each prompt begins with </s>."""
    folder.mkdir(parents=True, exist_ok=True)
    model = json.loads(tokenizer.to_str())["model"]
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    learned = [name for name in model["vocab"] if not name.startswith("<|")]
    vocabulary = {name: index for index, name in enumerate([*special, *learned])}
    write_json(folder / "vocab.json", vocabulary)
    lines = ["#version: 0.2", *(" ".join(merge) for merge in model["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
    roles = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    write_json(folder / "special_tokens_map.json", roles)
    write_json(
        folder / "tokenizer_config.json",
        {**roles, "tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "errors": "replace"},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes the small tokenizers of the tests.")
    parser.add_argument(
        "folder", nargs="?", type=Path, default=ROOT / "tests" / "fixtures" / "tokenizers"
    )
    folder = parser.parse_args().folder
    roles = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    write_fast(folder / "byte_level", byte_level(), {**roles, "chat_template": CHATML})
    write_opt(folder / "opt", byte_level())
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_fast(folder / "metaspace", metaspace(), roles)


if __name__ == "__main__":
    main()
