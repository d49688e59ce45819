"""How many questions about new media a demo answers to the letter."""

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from quire import Engine, SamplingParams


class Question(Protocol):
    """A question about media, and what the model has to write."""

    @property
    def kind(self) -> str: ...

    @property
    def prompt(self) -> str: ...

    @property
    def answer(self) -> str: ...

    @property
    def data(self) -> dict[str, Any]:
        """`multi_modal_data` of the engine."""
        ...


def evaluate(about: str | None, questions: Callable[[int], Sequence[Question]]) -> None:
    """Prints how a folder given on the command line answers questions.

    Args:
        about: what `--help` says first.
        questions: gives so many of each kind.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=400, help="questions of each kind")
    arguments = parser.parse_args()
    asked = questions(arguments.count)
    with Engine(arguments.folder) as engine:
        texts = answers(engine, asked)
    report(asked, texts)


def answers(engine: Engine, questions: Sequence[Question]) -> list[str]:
    """What the model writes after the prompt of each question, greedily."""
    prompts = [{"prompt": one.prompt, "multi_modal_data": one.data} for one in questions]
    outputs = engine.generate(prompts, SamplingParams(temperature=0, max_tokens=64), use_tqdm=False)
    return [output.outputs[0].text.removeprefix(" ") for output in outputs]


def accuracy(questions: Sequence[Question], texts: Sequence[str]) -> dict[str, float]:
    """The share of right answers by kind of question, and over "all"."""
    pairs = zip(questions, texts, strict=True)
    right = Counter(question.kind for question, text in pairs if text == question.answer)
    total = Counter(question.kind for question in questions)
    scores = {kind: right[kind] / total[kind] for kind in total}
    return scores | {"all": right.total() / total.total()}


def report(questions: Sequence[Question], texts: Sequence[str]) -> None:
    """Prints the accuracy of every kind, and wrong answers."""
    for kind, score in accuracy(questions, texts).items():
        print(f"held out {kind:14} {100 * score:6.2f} %")
    for question, text in zip(questions, texts, strict=True):
        if text != question.answer:
            print(f"{question.prompt[-80:]!r} -> {text!r}, not {question.answer!r}")
