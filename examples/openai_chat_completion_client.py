"""Holds a conversation with a running server.

    quire serve
    python examples/openai_chat_completion_client.py [--base-url URL] [--api-key KEY]

Needs the openai package.
"""

import argparse

from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam

QUESTIONS = ["What is the capital of Italy?", "Which day comes after Monday?"]


def main(base_url: str, api_key: str) -> None:
    client = OpenAI(base_url=base_url, api_key=api_key)
    model = client.models.list().data[0].id

    messages: list[ChatCompletionMessageParam] = [
        {"role": "system", "content": "You are a helpful assistant."}
    ]
    for question in QUESTIONS:
        messages.append({"role": "user", "content": question})
        response = client.chat.completions.create(
            model=model, messages=messages, max_completion_tokens=48, temperature=0
        )
        answer = response.choices[0].message.content
        messages.append({"role": "assistant", "content": answer})
        print(f"{question} {answer}")
        if response.usage:
            print(f"({response.usage.total_tokens} tokens)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-url", default="http://localhost:8000/v1")
    parser.add_argument("--api-key", default="EMPTY")
    main(**vars(parser.parse_args()))
