"""Asks about one picture and about two, by prompts with placeholders and by conversations.

    python examples/offline_inference_vision.py [--model MODEL]

MODEL is a Hugging Face id, such as llava-hf/llava-1.5-7b-hf, or a local folder of a LLaVA; without
it the small model that comes with Quire looks: it knows shapes and their colours.
"""

import argparse
from typing import Any

from PIL import Image, ImageDraw

from quire import LLM, SamplingParams

ONE = "What is in the picture?"
TWO = "What differs?"


def drawn() -> list[Image.Image]:
    """A red circle and a blue one."""
    pictures = [Image.new("RGB", size, "white") for size in ((320, 240), (240, 240))]
    for picture, colour in zip(pictures, ("red", "blue"), strict=True):
        ImageDraw.Draw(picture).ellipse((60, 60, 180, 180), fill=colour)
    return pictures


def prompt(question: str, pictures: list[Image.Image]) -> dict[str, Any]:
    """A LLaVA's prompt, with a placeholder for each picture."""
    placeholders = "<image>\n" * len(pictures)
    text = f"USER: {placeholders}{question} ASSISTANT:"
    return {"prompt": text, "multi_modal_data": {"image": pictures}}


def conversation(question: str, pictures: list[Image.Image]) -> list[dict[str, Any]]:
    """One message; the model's chat template puts the placeholders in."""
    parts = [{"type": "image_pil", "image_pil": picture} for picture in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def main(model: str) -> None:
    params = SamplingParams(temperature=0, max_tokens=64)
    first, second = drawn()
    questions = [(ONE, [first]), (ONE, [second]), (TWO, [first, second])]
    with LLM(model) as llm:
        generated = llm.generate([prompt(*each) for each in questions], params)
        chatted = llm.chat([conversation(*each) for each in questions], params)
    for way, outputs in (("generate", generated), ("chat", chatted)):
        for (question, _), output in zip(questions, outputs, strict=True):
            print(f"{way}: {question} {output.outputs[0].text.strip()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="vision-demo")
    main(**vars(parser.parse_args()))
