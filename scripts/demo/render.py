"""Conversations as text: the demo model's chat template, twice over, and a second layout.

`CHAT_TEMPLATE` (Jinja) and `render` make the same text; a test holds them together.
"""

import json
from collections.abc import Sequence
from typing import Any

Message = dict[str, Any]
Segment = tuple[str, bool]
"""A piece of a document, and whether the model is meant to write it."""

END_OF_TEXT = "<|endoftext|>"
SPECIAL_TOKENS = (END_OF_TEXT, "<|im_start|>", "<|im_end|>", "<|begin_of_text|>")
SPECIAL_TOKENS += ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>")
STOP_TOKENS = (END_OF_TEXT, "<|im_end|>", "<|eot_id|>")

TOOLS_INTRODUCTION = "You can call these functions:"
TOOLS_RULE = 'To call one, answer with {"name": its name, "parameters": its arguments} and no more.'

CHAT_TEMPLATE = (
    """\
{%- set system = messages[0].content if messages and messages[0].role == 'system' else '' -%}
{%- if tools %}
{{- '<|im_start|>system\\n' }}
{{- system + '\\n\\n' if system else '' }}
{{- '"""
    + TOOLS_INTRODUCTION
    + """\\n' }}
{%- for tool in tools %}
{{- (tool.function if tool.function is defined else tool) | tojson }}
{{- '\\n' }}
{%- endfor %}
{{- '"""
    + TOOLS_RULE
    + """<|im_end|>\\n' }}
{%- elif system %}
{{- '<|im_start|>system\\n' + system + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role != 'system' or not loop.first %}
{{- '<|im_start|>' + ('tool' if message.role == 'ipython' else message.role) + '\\n' }}
{%- if message.tool_calls %}
{%- for call in message.tool_calls %}
{%- set called = call.function if call.function is defined else call %}
{{- '; ' if not loop.first else '' }}
{{- '{"name": ' + called.name | tojson + ', "parameters": ' }}
{{- called.arguments if called.arguments is string else called.arguments | tojson }}
{{- '}' }}
{%- endfor %}
{%- elif message.content is string %}
{{- message.content }}
{%- else %}
{%- for part in message.content or [] %}
{{- part.text if part.text is defined else '' }}
{%- endfor %}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}"""
)

HEADER_REQUESTS = (
    "Answer with a call of one of these functions, as JSON with the fields name and parameters.",
    'Respond with {"name": function name, "parameters": its arguments}.',
    "Here are functions you may call. Reply with the JSON of a call that answers the question.",
    "You can call these functions:",
)


def call_text(name: str, arguments: dict[str, Any]) -> str:
    """One function call as the model writes it."""
    return json.dumps({"name": name, "parameters": arguments}, ensure_ascii=False)


def render(messages: Sequence[Message], tools: Sequence[Message] = ()) -> list[Segment]:
    """The conversation in ChatML; an assistant's turn and its end are what the model writes."""
    system = messages[0]["content"] if messages and messages[0]["role"] == "system" else ""
    text = system
    if tools:
        lines = [json.dumps(tool["function"], ensure_ascii=False) for tool in tools]
        text = "\n".join([system + "\n" if system else "", TOOLS_INTRODUCTION, *lines, TOOLS_RULE])
        text = text.removeprefix("\n")
    segments = [(f"<|im_start|>system\n{text}<|im_end|>\n", False)] if text else []
    for message in messages[1 if system else 0 :]:
        start = f"<|im_start|>{message['role']}\n"
        if message["role"] != "assistant":
            segments.append((f"{start}{message['content']}<|im_end|>\n", False))
            continue
        segments += [(start, False), (message["content"] + "<|im_end|>", True), ("\n", False)]
    return segments


def render_headers(
    messages: Sequence[Message], tools: Sequence[Message], request: str
) -> list[Segment]:
    """The conversation between header tokens, with `tools` in front of the first question.

    `request` is one of `HEADER_REQUESTS`, or any other words that ask for a call.
    """
    segments = [("<|begin_of_text|>", False)]
    functions = "\n\n".join(json.dumps(tool, indent=4, ensure_ascii=False) for tool in tools)
    waiting = f"{request}\n\n{functions}\n\n" if tools else ""
    for message in messages:
        role, content = message["role"], message["content"]
        start = f"<|start_header_id|>{role.replace('tool', 'ipython')}<|end_header_id|>\n\n"
        if role == "assistant":
            segments += [(start, False), (content + "<|eot_id|>", True)]
            continue
        if role == "user":
            content, waiting = waiting + content, ""
        segments.append((f"{start}{content}<|eot_id|>", False))
    return segments
