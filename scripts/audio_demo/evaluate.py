"""How many questions about new sounds the audio demo answers, greedily and to the letter.

PYTHONPATH=src python -m scripts.audio_demo.evaluate models/audio_demo
"""

import argparse
from pathlib import Path

from quire import Engine

from ..media_demo.scores import answers, report
from .dialogues import HELD_OUT_KINDS, Question, held_out


def held_out_questions(count: int) -> list[Question]:
    """So many questions of every kind, none of whose sounds is in training."""
    return [question for kind in HELD_OUT_KINDS for question in held_out(kind, count)]


def main() -> None:
    """Prints the accuracy of every kind, and wrong answers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=400, help="questions of each kind")
    arguments = parser.parse_args()
    questions = held_out_questions(arguments.count)
    with Engine(arguments.folder) as engine:
        texts = answers(engine, questions)
    report(questions, texts)


if __name__ == "__main__":
    main()
