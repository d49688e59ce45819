"""Completes a prompt by a running server, whole and as a stream.

    quire serve
    python examples/openai_completion_client.py [--base-url URL] [--api-key KEY]

Needs the openai package.
"""

import argparse

from openai import OpenAI

PROMPT = "The capital of France is"


def main(base_url: str, api_key: str) -> None:
    client = OpenAI(base_url=base_url, api_key=api_key)
    model = client.models.list().data[0].id

    completion = client.completions.create(
        model=model, prompt=PROMPT, max_tokens=16, temperature=0, logprobs=2
    )
    choice = completion.choices[0]
    print(f"{PROMPT!r} -> {choice.text!r} ({choice.finish_reason})")
    if choice.logprobs and choice.logprobs.top_logprobs:
        print("The first token's likeliest:", choice.logprobs.top_logprobs[0])

    print("Streamed:", end="", flush=True)
    for chunk in client.completions.create(
        model=model, prompt=PROMPT, max_tokens=16, temperature=0, stream=True
    ):
        print(chunk.choices[0].text, end="", flush=True)
    print()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-url", default="http://localhost:8000/v1")
    parser.add_argument("--api-key", default="EMPTY")
    main(**vars(parser.parse_args()))
