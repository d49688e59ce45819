"""Completes a few prompts in one batch.

    python examples/offline_inference.py [MODEL]

MODEL is a Hugging Face id, such as facebook/opt-125m, or a local folder; without it the demo model
that comes with Quire answers.
"""

import sys

from quire import LLM, SamplingParams

PROMPTS = [
    "Hello, my name is",
    "The president of the United States is",
    "The capital of France is",
    "The future of AI is",
]


def main(model: str | None = None) -> None:
    params = SamplingParams(temperature=0.8, top_p=0.95, max_tokens=32)
    with LLM(model) as llm:
        for output in llm.generate(PROMPTS, params):
            print(f"{output.prompt!r} -> {output.outputs[0].text!r}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
