"""The vision demo's tokenizer: byte-level BPE over its own text."""

import re
from random import Random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from .dialogues import END, IMAGE, training_dialogue

SPECIAL_TOKENS = ("<pad>", END, IMAGE)
"""In the order of their ids, from 0."""


def train_tokenizer(vocab_size: int, count: int = 6000) -> Tokenizer:
    """A tokenizer trained on that many dialogues, always the same ones."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng = Random(0)
    dialogues = (training_dialogue(rng, i % 3) for i in range(count))
    texts = ("".join(text for text, _ in dialogue.segments) for dialogue in dialogues)
    special = re.compile("|".join(SPECIAL_TOKENS))
    tokenizer.train_from_iterator((special.sub("", text) for text in texts), trainer)
    return tokenizer
