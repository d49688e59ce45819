"""Makes the demo model's tokenizer: byte-level BPE over its own text, every digit a token.

python scripts/demo/tokenizer.py --out models/demo
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from data import KINDS
from render import CHAT_TEMPLATE, END_OF_TEXT, SPECIAL_TOKENS, Segment
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 1792
CONTEXT = 1024
DOCUMENTS = 40_000


def train_tokenizer(documents: int, vocab_size: int = VOCAB_SIZE, seed: int = 0) -> Tokenizer:
    """A tokenizer trained on that many documents, as many of each kind.

    Special tokens have the ids 0, 1, 2, ...
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng, makers = Random(seed), [maker for _, maker in KINDS.values()]
    texts = (makers[i % len(makers)](rng, False).segments for i in range(documents))
    tokenizer.train_from_iterator(map(plain_text, texts), trainer)
    return tokenizer


def plain_text(segments: Sequence[Segment]) -> str:
    """The text of a document without its special tokens."""
    text = "".join(piece for piece, _ in segments)
    for token in SPECIAL_TOKENS:
        text = text.replace(token, "")
    return text


def tokenizer_config() -> dict[str, Any]:
    """The contents of `tokenizer_config.json`."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": END_OF_TEXT,
        "additional_special_tokens": [
            token for token in SPECIAL_TOKENS if token not in ("<|im_end|>", END_OF_TEXT)
        ],
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def main() -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=DOCUMENTS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    train_tokenizer(arguments.documents).save(str(arguments.out / "tokenizer.json"))
    text = json.dumps(tokenizer_config(), indent=2) + "\n"
    (arguments.out / "tokenizer_config.json").write_text(text)


if __name__ == "__main__":
    main()
