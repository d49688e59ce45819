"""How many questions about new sounds the audio demo answers, greedily and to the letter.

PYTHONPATH=src python -m scripts.audio_demo.evaluate models/audio_demo
"""

from ..media_demo.scores import evaluate
from .dialogues import HELD_OUT_KINDS, Question, held_out


def held_out_questions(count: int) -> list[Question]:
    """So many questions of every kind, none of whose sounds is in training."""
    return [question for kind in HELD_OUT_KINDS for question in held_out(kind, count)]


if __name__ == "__main__":
    evaluate(__doc__, held_out_questions)
