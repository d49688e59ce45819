"""Answers that keep a form: JSON of a schema, one of some choices, a regular expression.

    quire serve
    python examples/openai_structured_output_client.py [--base-url URL] [--api-key KEY]

Needs the openai package.
"""

import argparse
import json
from typing import Any

from openai import OpenAI

SCHEMA: dict[str, object] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "is_capital": {"type": "boolean"},
    },
    "required": ["city", "is_capital"],
    "additionalProperties": False,
}


def main(base_url: str, api_key: str) -> None:
    client = OpenAI(base_url=base_url, api_key=api_key)
    model = client.models.list().data[0].id

    def ask(content: str, **form: Any) -> str:
        response = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": content}],
            max_completion_tokens=64,
            temperature=0,
            **form,
        )
        return response.choices[0].message.content or ""

    schema = {"name": "city", "schema": SCHEMA, "strict": True}
    form = {"type": "json_schema", "json_schema": schema}
    print("JSON:", json.loads(ask("What is the capital of France?", response_format=form)))

    # what OpenAI's API has no field for goes in extra_body
    for kind, content, form in (
        ("choice", "What is the capital of Italy?", ["Berlin", "Paris", "Rome"]),
        ("regex", "Which day comes after Monday?", "(Mon|Tues|Wednes)day"),
    ):
        extra = {"structured_outputs": {kind: form}}
        print(f"{kind}: {ask(content, extra_body=extra)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-url", default="http://localhost:8000/v1")
    parser.add_argument("--api-key", default="EMPTY")
    main(**vars(parser.parse_args()))
