"""Asks about one picture, two pictures and a clip, by prompts with placeholders and by
conversations.

    python examples/offline_inference_vision_language.py [--model MODEL] [--modality image|video]

MODEL is a Hugging Face id, such as llava-hf/LLaVA-NeXT-Video-7B-hf, or a local folder of a LLaVA;
without it the small model that comes with Quire looks: it knows shapes, their colours, and where
they move.
"""

import argparse
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from quire import LLM, SamplingParams

Question = tuple[str, dict[str, list[Any]]]
"""What is asked, and of which media, by their kind."""
TYPES = {"image": "image_pil", "video": "video"}
"""Of the parts of a message, by kind of media."""


def circle(x: int, y: int, colour: str) -> Image.Image:
    """A circle on a white ground."""
    picture = Image.new("RGB", (320, 240), "white")
    ImageDraw.Draw(picture).ellipse((x - 60, y - 60, x + 60, y + 60), fill=colour)
    return picture


def questions(modality: str) -> list[Question]:
    """Some about pictures of a red circle and of a blue one, or about a clip of a red one."""
    if modality == "video":
        frames = [np.asarray(circle(100 + 40 * i, 120, "red")) for i in range(4)]
        clip = np.stack(frames)  # frames, height, width, 3; a path would do as well
        return [(ask, {"video": [clip]}) for ask in ("What moves?", "Which way does it move?")]
    red, blue = circle(160, 120, "red"), circle(120, 120, "blue")
    what = "What is in the picture?"
    return [
        (what, {"image": [red]}),
        (what, {"image": [blue]}),
        ("What differs?", {"image": [red, blue]}),
    ]


def prompt(question: str, media: dict[str, list[Any]]) -> dict[str, Any]:
    """A LLaVA's prompt, with a placeholder for each medium."""
    placeholders = "".join(f"<{kind}>\n" * len(each) for kind, each in media.items())
    text = f"USER: {placeholders}{question} ASSISTANT:"
    return {"prompt": text, "multi_modal_data": media}


def conversation(question: str, media: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """One message; the model's chat template puts the placeholders in."""
    parts = [
        {"type": TYPES[kind], TYPES[kind]: one} for kind, each in media.items() for one in each
    ]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def main(model: str, modality: str | None) -> None:
    params = SamplingParams(temperature=0, max_tokens=64)
    kinds = TYPES if modality is None else [modality]
    asked = [question for kind in kinds for question in questions(kind)]
    with LLM(model) as llm:
        generated = llm.generate([prompt(*each) for each in asked], params)
        chatted = llm.chat([conversation(*each) for each in asked], params)
    for way, outputs in (("generate", generated), ("chat", chatted)):
        for (question, _), output in zip(asked, outputs, strict=True):
            print(f"{way}: {question} {output.outputs[0].text.strip()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="vision-demo")
    parser.add_argument("--modality", choices=tuple(TYPES), help="by default both")
    main(**vars(parser.parse_args()))
