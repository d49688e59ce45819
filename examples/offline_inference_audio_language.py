"""Asks about no sound, one and two, by prompts with placeholders and by conversations.

    python examples/offline_inference_audio_language.py [--model MODEL] [--num-audios 0|1|2]

MODEL is a Hugging Face id, such as Qwen/Qwen2-Audio-7B-Instruct, or a local folder of a
Qwen2-Audio; without it the small model that comes with Quire listens: it counts tones, and knows
high ones from low ones.
"""

import argparse
from typing import Any

import numpy as np

from quire import LLM, SamplingParams

Sound = tuple[np.ndarray, int]
"""Samples and their rate in Hz; the path of a file would do as well."""
QUESTIONS = ("What do you hear?", "How many tones are there?", "Which sound has more tones?")
"""By the number of sounds."""


def tones(*hertz: float, rate: int = 16000) -> Sound:
    """One after the other, with pauses between them."""
    time = np.arange(int(0.4 * rate)) / rate
    pause = np.zeros(int(0.2 * rate))
    parts = [part for each in hertz for part in (np.sin(2 * np.pi * each * time) / 2, pause)]
    return np.concatenate([pause, *parts]), rate


def prompt(question: str, sounds: list[Sound]) -> dict[str, Any]:
    """A Qwen2-Audio's prompt, with a placeholder for each sound."""
    placeholders = "".join(
        f"Audio {i}: <|audio_bos|><|AUDIO|><|audio_eos|>\n" for i in range(1, len(sounds) + 1)
    )
    text = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{placeholders}{question}<|im_end|>\n<|im_start|>assistant\n"
    )
    return {"prompt": text, "multi_modal_data": {"audio": sounds}}


def conversation(question: str, sounds: list[Sound]) -> list[dict[str, Any]]:
    """One message; the model's chat template puts the placeholders in."""
    parts = [{"type": "audio", "audio": sound} for sound in sounds]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def main(model: str, num_audios: int | None) -> None:
    params = SamplingParams(temperature=0, max_tokens=64)
    sounds = [tones(440, 440, 1200), tones(300)]
    numbers = range(len(QUESTIONS)) if num_audios is None else [num_audios]
    asked = [(QUESTIONS[number], sounds[:number]) for number in numbers]
    with LLM(model, limit_mm_per_prompt={"audio": 2}) as llm:
        generated = llm.generate([prompt(*each) for each in asked], params)
        chatted = llm.chat([conversation(*each) for each in asked], params)
    for way, outputs in (("generate", generated), ("chat", chatted)):
        for (question, _), output in zip(asked, outputs, strict=True):
            print(f"{way}: {question} {output.outputs[0].text.strip()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="audio-demo")
    parser.add_argument("--num-audios", type=int, choices=(0, 1, 2), help="by default each")
    main(**vars(parser.parse_args()))
