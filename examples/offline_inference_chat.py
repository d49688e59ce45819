"""Answers conversations, by the model's chat template or one of your own.

    python examples/offline_inference_chat.py [MODEL [TEMPLATE]]

MODEL is a Hugging Face id, such as meta-llama/Meta-Llama-3-8B-Instruct, or a local folder; without
it the demo model answers. TEMPLATE is a file with a Jinja template, for models that have none:
examples/template_chatml.jinja.
"""

import sys

from quire import LLM, SamplingParams
from quire.entrypoints.chat_utils import load_chat_template

SYSTEM = {"role": "system", "content": "You are a helpful assistant."}
CONVERSATION = [
    SYSTEM,
    {"role": "user", "content": "What is the capital of Italy?"},
    {"role": "assistant", "content": "The capital of Italy is Rome."},
    {"role": "user", "content": "And the capital of France?"},
]
QUESTIONS = ["What is 3 + 4?", "Which day comes after Monday?"]


def main(model: str | None = None, template: str | None = None) -> None:
    params = SamplingParams(temperature=0, max_tokens=48)
    chat_template = load_chat_template(template)
    with LLM(model) as llm:
        (output,) = llm.chat(CONVERSATION, params, chat_template=chat_template)
        print(output.outputs[0].text)

        batch = [[SYSTEM, {"role": "user", "content": question}] for question in QUESTIONS]
        outputs = llm.chat(batch, params, chat_template=chat_template)
        for question, output in zip(QUESTIONS, outputs, strict=True):
            print(f"{question} {output.outputs[0].text}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
