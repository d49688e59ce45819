"""Shows an answer of a running server while it is made, and what it took.

    quire serve
    python examples/openai_chat_streaming_client.py [--base-url URL] [--api-key KEY]

Needs the openai package.
"""

import argparse

from openai import OpenAI


def main(base_url: str, api_key: str) -> None:
    client = OpenAI(base_url=base_url, api_key=api_key)
    stream = client.chat.completions.create(
        model=client.models.list().data[0].id,
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    for chunk in stream:
        for choice in chunk.choices:
            print(choice.delta.content or "", end="", flush=True)
            if choice.finish_reason:
                print(f"\nIt ended by {choice.finish_reason!r}.")
        if chunk.usage:  # in the last chunk, which has no choices
            usage = chunk.usage
            print(f"{usage.prompt_tokens} tokens in, {usage.completion_tokens} out")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-url", default="http://localhost:8000/v1")
    parser.add_argument("--api-key", default="EMPTY")
    main(**vars(parser.parse_args()))
