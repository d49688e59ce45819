"""How many questions about new drawings the vision demo answers, greedily and to the letter.

PYTHONPATH=src python -m scripts.vision_demo_next.evaluate models/vision_demo_next
"""

from ..media_demo.scores import evaluate
from .dialogues import HELD_OUT_KINDS, Question, held_out


def held_out_questions(count: int) -> list[Question]:
    """So many questions of every kind, none of whose drawings is in training."""
    return [question for kind in HELD_OUT_KINDS for question in held_out(kind, count)]


if __name__ == "__main__":
    evaluate(__doc__, held_out_questions)
