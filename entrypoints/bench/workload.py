"""What a benchmark asks for: prompts, and how many tokens each is to get."""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from ... import OptionError, PromptError
from ...errors import nearest

SAMPLING = frozenset({"temperature", "top_p", "top_k"})
"""The sampling parameters that benchmarks have flags for."""
KEYS = ("prompt", "output_len", "id")
FORM = 'a JSON object such as {"prompt": "...", "output_len": 64}'
WORDS = "the of and to in is it that was for on are with as they at be this from have".split()
RANDOM_DEFAULTS = {"num_prompts": 64, "input_len": 128, "range_ratio": 0.0}
"""Where there is no dataset."""


@dataclasses.dataclass(frozen=True)
class Ask:
    """One prompt and the number of tokens it is to get."""

    prompt: str | list[int]
    output_len: int


@dataclasses.dataclass(frozen=True)
class Lengths:
    """How long random prompts and their outputs are, in tokens: uniform within +- `ratio`."""

    input_len: int
    output_len: int
    ratio: float = 0.0

    def draw(self, random: Random) -> tuple[int, int]:
        """The lengths of one prompt and its output."""
        return self._near(self.input_len, random), self._near(self.output_len, random)

    def _near(self, length: int, random: Random) -> int:
        low, high = round(length * (1 - self.ratio)), round(length * (1 + self.ratio))
        return random.randint(max(low, 1), max(high, 1))


def random_ids(count: int, lengths: Lengths, vocab_size: int, seed: int) -> list[Ask]:
    """Prompts of token ids, each id as likely as any other; the same for the same arguments."""
    random = Random(seed)

    def ask(input_len: int, output_len: int) -> Ask:
        return Ask(random.choices(range(vocab_size), k=input_len), output_len)

    return [ask(*lengths.draw(random)) for _ in range(count)]


def random_words(count: int, lengths: Lengths, seed: int) -> list[Ask]:
    """Prompts of words, most of them one token; the same for the same arguments."""
    random = Random(seed)

    def ask(input_len: int, output_len: int) -> Ask:
        return Ask(" ".join(random.choices(WORDS, k=input_len)), output_len)

    return [ask(*lengths.draw(random)) for _ in range(count)]


def settle(args: argparse.Namespace) -> None:
    """Sets what was not given and has a default only where prompts are random.

    Raises OptionError for what a dataset decides, given beside one.
    """
    if args.dataset is None:
        for name, default in RANDOM_DEFAULTS.items():
            if getattr(args, name, None) is None:
                setattr(args, name, default)
        return
    for name in ("input_len", "range_ratio"):
        if (value := getattr(args, name, None)) is not None:
            flag = name.replace("_", "-")
            raise OptionError(
                f"--{flag} {value} is for random prompts; those of --dataset {args.dataset} have "
                "lengths of their own. Leave one of the two out."
            )


def lengths(args: argparse.Namespace) -> Lengths:
    """Those that settled arguments ask for."""
    return Lengths(args.input_len, args.output_len, getattr(args, "range_ratio", 0.0))


def read_dataset(path: str, output_len: int, count: int | None) -> list[Ask]:
    """The first `count` lines of a file, None for all of them; empty lines are passed over.

    Args:
        output_len: for lines that do not say.

    Raises:
        OptionError: the file cannot be read, or has fewer lines.
        PromptError: naming the first line that is wrong.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise OptionError(f"--dataset {path} cannot be read: {error}.") from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise PromptError(f"{path} has no lines. Each must be {FORM}.")
    if count is not None and count > len(numbered):
        raise OptionError(
            f"--num-prompts {count} is more than the {len(numbered)} of {path}. Lower it, or leave "
            "it out to take them all."
        )
    return [_parse(f"{path}, line {n}", line, output_len) for n, line in numbered[:count]]


def _parse(where: str, text: str, output_len: int) -> Ask:
    try:
        line = json.loads(text)
    except ValueError as error:
        raise PromptError(f"{where}: not JSON ({error}). It must be {FORM}.") from error
    if not isinstance(line, dict) or "prompt" not in line:
        raise PromptError(f"{where}: {text} must be {FORM}.")
    for key in line:
        if key not in KEYS:
            hint = nearest(key, KEYS)
            raise PromptError(f"{where}: unknown field {key!r}.{hint} Known: {', '.join(KEYS)}.")
    return Ask(_prompt(where, line["prompt"]), _count(where, line.get("output_len", output_len)))


def _prompt(where: str, prompt: Any) -> str | list[int]:
    ids = isinstance(prompt, list) and all(type(token) is int for token in prompt)
    if not prompt or not (isinstance(prompt, str) or ids):
        raise PromptError(f"{where}: prompt={prompt!r} must be text or a list of token ids.")
    return prompt


def _count(where: str, value: Any) -> int:
    if type(value) is not int or value < 1:
        raise PromptError(f"{where}: output_len={value!r} must be a whole number, 1 or more.")
    return value


def texts_only(asks: Sequence[Ask]) -> None:
    """Raises PromptError for the first prompt that is no text."""
    for number, ask in enumerate(asks, 1):
        if not isinstance(ask.prompt, str):
            raise PromptError(
                f"prompt {number} is token ids, but a chat is made of text. Give text, or "
                "--endpoint completions."
            )
