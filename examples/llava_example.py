"""Asks a model that sees what is in a picture, as a prompt and as a conversation.

    python examples/llava_example.py [--model MODEL] [--image PATH]

MODEL is a Hugging Face id or a local folder of a LLaVA-1.5; without it llava-hf/llava-1.5-7b-hf
answers. Without a PATH the picture is one that this program draws: a red circle on blue.
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw

from quire import LLM, SamplingParams

MODEL = "llava-hf/llava-1.5-7b-hf"
QUESTION = "What is the content of this image?"
TEMPLATE = Path(__file__).resolve().parent / "template_llava.jinja"


def drawn() -> Image.Image:
    picture = Image.new("RGB", (640, 480), "blue")
    ImageDraw.Draw(picture).ellipse((220, 140, 420, 340), fill="red")
    return picture


def main(model: str, image: str | None) -> None:
    picture = Image.open(image) if image else drawn()
    params = SamplingParams(temperature=0, max_tokens=64)
    with LLM(model, chat_template=str(TEMPLATE)) as llm:
        prompt = {
            "prompt": f"USER: <image>\n{QUESTION}\nASSISTANT:",
            "multi_modal_data": {"image": picture},
        }
        (output,) = llm.generate(prompt, params)
        print(f"prompt: {output.outputs[0].text!r}")

        parts = [{"type": "text", "text": QUESTION}, {"type": "image_pil", "image_pil": picture}]
        (output,) = llm.chat([{"role": "user", "content": parts}], params)
        print(f"chat: {output.outputs[0].text!r}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--image", metavar="PATH")
    main(**vars(parser.parse_args()))
