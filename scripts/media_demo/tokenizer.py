"""Byte-level BPE over a demo's own text."""

import re
from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers


def train_tokenizer(texts: Iterable[str], special: Sequence[str], vocab_size: int) -> Tokenizer:
    """A tokenizer trained on the texts; `special` are its first tokens, in order of their ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pattern = re.compile("|".join(map(re.escape, special)))
    tokenizer.train_from_iterator((pattern.sub("", text) for text in texts), trainer)
    return tokenizer
