"""What a batch job can be told, beside the options of its engine and its sampling parameters."""

import dataclasses
from typing import Any

_SEVERAL = {"flag": {"action": "extend", "nargs": "+"}}


def _several() -> Any:
    """A list that starts empty; its flag takes several values, and may be given again."""
    return dataclasses.field(default=None, metadata=_SEVERAL)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """How rows are read and answers written."""

    overwrite: bool = False
    """Begins anew where there is an output, or a run that was not finished."""
    prompt_column: str | None = None
    """Column of the prompts. None: `prompt`, or conversations in `messages`."""
    result_prefix: str = ""
    """What the names of added columns begin with, where the input has some of the same names."""
    lora_modules: list[str] | None = _several()
    """Adapters that rows may name, each as name=path or as a JSON object of name and path; needs
    --enable-lora."""
    served_model_name: list[str] | None = _several()
    """Names by which OpenAI lines may call the model; answers bear the first. None is the model's
    own."""
    enable_auto_tool_choice: bool = False
    """Lets the model decide whether it calls a tool of an OpenAI line; needs --tool-call-parser."""
    tool_call_parser: str | None = None
    """How the model writes calls of tools, such as llama3_json or hermes."""
    tool_parser_plugin: str | None = None
    """Python file that registers parsers; it runs with all rights of this process."""
    reasoning_parser: str | None = None
    """How the model writes its reasoning, such as deepseek_r1 or qwen3."""


OF_ROWS = ("prompt_column", "result_prefix")
"""Those that OpenAI lines have no use for."""
OF_OPENAI_LINES = (
    "served_model_name",
    "enable_auto_tool_choice",
    "tool_call_parser",
    "tool_parser_plugin",
    "reasoning_parser",
)
"""Those that only they have a use for."""
SERVED = ("lora_modules", *OF_OPENAI_LINES)
"""Those that a server has, too."""
