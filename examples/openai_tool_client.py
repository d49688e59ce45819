"""Lets a model call a function: as it likes, some function, one by name, and as a stream.

    quire serve --enable-auto-tool-choice --tool-call-parser llama3_json
    python examples/openai_tool_client.py [--base-url URL] [--api-key KEY]

Needs the openai package.
"""

import argparse
import json

from openai import OpenAI
from openai.types.chat import (
    ChatCompletionMessageParam,
    ChatCompletionToolChoiceOptionParam,
    ChatCompletionToolParam,
)

MESSAGES: list[ChatCompletionMessageParam] = [
    {"role": "user", "content": "What's the weather like in San Francisco?"}
]
TOOLS: list[ChatCompletionToolParam] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the current weather in a given location",
            "parameters": {
                "type": "object",
                "properties": {
                    "location": {
                        "type": "string",
                        "description": "City and state, e.g., 'San Francisco, CA'",
                    },
                    "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
                },
                "required": ["location", "unit"],
            },
        },
    }
]
CHOICES: dict[str, ChatCompletionToolChoiceOptionParam] = {
    "auto": "auto",
    "required": "required",
    "named": {"type": "function", "function": {"name": "get_weather"}},
}


def get_weather(location: str, unit: str) -> str:
    return f"Getting the weather for {location} in {unit}..."


FUNCTIONS = {"get_weather": get_weather}


def call(name: str, arguments: str) -> str:
    """What the function gives. Raises for a name or arguments that there are not."""
    return FUNCTIONS[name](**json.loads(arguments))


def ask(client: OpenAI, model: str, choice: ChatCompletionToolChoiceOptionParam) -> str:
    """The result of the call that the model makes."""
    response = client.chat.completions.create(
        model=model, messages=MESSAGES, tools=TOOLS, tool_choice=choice, temperature=0
    )
    for tool_call in response.choices[0].message.tool_calls or ():
        if tool_call.type == "function":
            return call(tool_call.function.name, tool_call.function.arguments)
    return f"no call, but {response.choices[0].message.content!r}"


def ask_streamed(client: OpenAI, model: str, choice: ChatCompletionToolChoiceOptionParam) -> str:
    """The same from a stream, which has the name in one chunk and the arguments in pieces."""
    name, arguments, content = "", "", ""
    for chunk in client.chat.completions.create(
        model=model, messages=MESSAGES, tools=TOOLS, tool_choice=choice, temperature=0, stream=True
    ):
        delta = chunk.choices[0].delta
        content += delta.content or ""
        for piece in delta.tool_calls or ():
            if piece.function:
                name += piece.function.name or ""
                arguments += piece.function.arguments or ""
    return call(name, arguments) if name else f"no call, but {content!r}"


def main(base_url: str, api_key: str) -> None:
    client = OpenAI(base_url=base_url, api_key=api_key)
    model = client.models.list().data[0].id
    for name, choice in CHOICES.items():
        print(f"{name}: {ask(client, model, choice)}")
        print(f"{name}, streamed: {ask_streamed(client, model, choice)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-url", default="http://localhost:8000/v1")
    parser.add_argument("--api-key", default="EMPTY")
    main(**vars(parser.parse_args()))
