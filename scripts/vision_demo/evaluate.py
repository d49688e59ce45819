"""How many questions about new drawings the vision demo answers, greedily and to the letter.

PYTHONPATH=src python scripts/vision_demo/evaluate.py models/vision_demo
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dialogues import HELD_OUT_KINDS, Question, held_out

from quire import Engine, SamplingParams


def held_out_questions(count: int) -> list[Question]:
    """So many questions of every kind, none of whose drawings is in training."""
    return [question for kind in HELD_OUT_KINDS for question in held_out(kind, count)]


def answers(engine: Engine, questions: Sequence[Question]) -> list[str]:
    """What the model writes after the prompt of each question."""
    prompts = [
        {"prompt": question.prompt, "multi_modal_data": {"image": question.pictures}}
        for question in questions
    ]
    outputs = engine.generate(prompts, SamplingParams(temperature=0, max_tokens=64), use_tqdm=False)
    return [output.outputs[0].text.removeprefix(" ") for output in outputs]


def accuracy(questions: Sequence[Question], texts: Sequence[str]) -> dict[str, float]:
    """The share of right answers by kind of question, and over "all"."""
    pairs = zip(questions, texts, strict=True)
    right = Counter(question.kind for question, text in pairs if text == question.answer)
    total = Counter(question.kind for question in questions)
    scores = {kind: right[kind] / total[kind] for kind in total}
    return scores | {"all": right.total() / total.total()}


def main() -> None:
    """Prints the accuracy of every kind, and wrong answers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=400, help="questions of each kind")
    arguments = parser.parse_args()
    questions = held_out_questions(arguments.count)
    with Engine(arguments.folder) as engine:
        texts = answers(engine, questions)
    for kind, score in accuracy(questions, texts).items():
        print(f"held out {kind:14} {100 * score:6.2f} %")
    for question, text in zip(questions, texts, strict=True):
        if text != question.answer:
            print(f"{question.prompt[-80:]!r} -> {text!r}, not {question.answer!r}")


if __name__ == "__main__":
    main()
