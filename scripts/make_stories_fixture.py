"""Writes tests/fixtures/stories260k.json: what `transformers` continues 20 prompts with.

    python scripts/make_stories_fixture.py FOLDER

FOLDER holds the TinyStories-260K checkpoint in Hugging Face layout. Needs torch and transformers.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = [
    "Once upon a time,",
    "One day",
    "Lily",
    "The big dog",
    "Tom and Sue went to the park.",
    "It was raining",
    "There was a little boy named Tim.",
    "She saw a bird",
    "The cat sat on",
    "Mom said",
    "In the garden",
    "He wanted to play with",
    "A red ball",
    "The sun was",
    "Ben found a box. He opened it and",
    "They were happy",
    "At night,",
    "The bear was hungry",
    "Why",
    "Anna liked to dance. Every day she",
]
TOKENS = 128


def main() -> None:
    folder = sys.argv[1]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    entries = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt)["input_ids"]
        output = model.generate(
            torch.tensor([ids]), do_sample=False, max_new_tokens=TOKENS, min_new_tokens=TOKENS
        )
        entries.append({"prompt": prompt, "ids": ids, "greedy": output[0, len(ids) :].tolist()})
    target = Path(__file__).parent.parent / "tests" / "fixtures" / "stories260k.json"
    target.write_text(json.dumps(entries))


if __name__ == "__main__":
    main()
