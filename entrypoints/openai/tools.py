"""What a request offers the model to call, how a call is forced, and what reads the answer."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from ..parsers import (
    Chain,
    NamedCallParser,
    Parser,
    RequiredCallsParser,
    reasoning_parser,
    tool_parser,
)
from .errors import bad_request
from .options import ServerOptions
from .protocol import (
    AllowedToolChoice,
    ChatCompletionRequest,
    NamedToolChoice,
    Tool,
    ToolChoice,
)
from .sampling import structure_of

_NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}

_ELSEWHERE = {"$ref", "allOf", "anyOf", "if", "oneOf", "patternProperties"}
"""With these, arguments may have names that `properties` has not."""
_SPACES = {"whitespace_pattern": r"[ \n\t]{0,32}"}
"""Bounded, since some models never stop to write white space."""


@dataclasses.dataclass(frozen=True, slots=True)
class Toolbox:
    """What a chat request makes of its tools."""

    mode: str
    """none, auto, required or named."""
    offered: list[dict[str, Any]] | None
    """Tools for the chat template."""
    structure: dict[str, Any] | None
    """What forces the call, as keywords of `StructuredOutputsParams`."""
    name: str = ""
    """The function a named choice names."""
    one_call: bool = False
    """Only the first call is given."""


def choose_tools(request: ChatCompletionRequest, options: ServerOptions) -> Toolbox:
    """Checks the tools of a request and its choice among them. Raises ApiError."""
    choice = request.tool_choice
    if request.tools is None:
        if choice not in (None, "none"):
            raise bad_request("tool_choice needs tools. Give some, or leave it out.", "tool_choice")
        return Toolbox("none", None, None)
    if not request.tools:
        raise bad_request("tools=[] offers nothing. Give a tool, or leave tools out.", "tools")
    mode, tools, name = _choice(choice, request.tools)
    if mode == "none":
        return Toolbox("none", None, None)
    _check_schemas(tools)
    if mode == "auto":
        _check_auto(options)
    _check_structure(request)
    one_call = not request.parallel_tool_calls
    structure = _forced(mode, tools, one_call=one_call)
    offered = [tool.model_dump(exclude_unset=True) | {"type": "function"} for tool in tools]
    return Toolbox(mode, offered, structure, name, one_call)


def make_parser(toolbox: Toolbox, options: ServerOptions, *, constrained: bool) -> Chain:
    """What reads one choice of the answer.

    An answer whose form is `constrained` has no reasoning: its first token belongs to the form.
    """
    reasoning = None
    if options.reasoning_parser is not None and not constrained:
        reasoning = reasoning_parser(options.reasoning_parser)()
    return Chain(reasoning, _tool_parser(toolbox, options))


def _tool_parser(toolbox: Toolbox, options: ServerOptions) -> Parser | None:
    tools = toolbox.offered or []
    match toolbox.mode:
        case "required":
            return RequiredCallsParser(tools)
        case "named":
            return NamedCallParser(tools, toolbox.name)
        case "auto" if options.tool_call_parser is not None:
            return tool_parser(options.tool_call_parser)(tools)
        case _:
            return None


def _choice(choice: ToolChoice | None, tools: Sequence[Tool]) -> tuple[str, Sequence[Tool], str]:
    """The mode, the tools that may be called, and the name of a named choice."""
    match choice:
        case NamedToolChoice():
            return "named", _pick([choice], tools), choice.function.name
        case AllowedToolChoice(allowed_tools=allowed):
            return allowed.mode, _pick(allowed.tools, tools), ""
        case _:
            return choice or "auto", tools, ""


def _pick(named: Sequence[NamedToolChoice], tools: Sequence[Tool]) -> list[Tool]:
    by_name = {tool.function.name: tool for tool in tools}
    for one in named:
        if one.function.name not in by_name:
            raise bad_request(
                f"tool_choice names {one.function.name!r}, but tools has only "
                f"{', '.join(by_name)}. Name one of these.",
                "tool_choice",
            )
    return [by_name[one.function.name] for one in named]


def _check_schemas(tools: Sequence[Tool]) -> None:
    names = [tool.function.name for tool in tools]
    for index, tool in enumerate(tools):
        kind = (tool.function.parameters or {}).get("type", "object")
        where = f"tools[{index}].function"
        if kind != "object":
            raise bad_request(
                f"{where}.parameters.type={kind!r} must be 'object': arguments have names.",
                f"{where}.parameters",
            )
        if names.index(tool.function.name) != index:
            raise bad_request(
                f"{where}.name={tool.function.name!r} is the name of an earlier tool, too. "
                "Give each its own.",
                f"{where}.name",
            )


def _check_auto(options: ServerOptions) -> None:
    if not options.enable_auto_tool_choice or options.tool_call_parser is None:
        raise bad_request(
            'tool_choice="auto" needs a server started with --enable-auto-tool-choice and '
            '--tool-call-parser. Start it with both, or send "required", a named function or '
            '"none".',
            "tool_choice",
        )


def _check_structure(request: ChatCompletionRequest) -> None:
    """The answer is a call or has the form asked for; it cannot be both."""
    if structure_of(request) is not None:
        name = "response_format" if request.structured_outputs is None else "structured_outputs"
        raise bad_request(
            f"{name} forces the form of the answer, so that no tool can be called. Send "
            f'tool_choice="none", or leave {name} out.',
            name,
        )


def _forced(mode: str, tools: Sequence[Tool], *, one_call: bool) -> dict[str, Any] | None:
    if mode == "named":
        return {"json": _arguments(tools[0])}
    if mode != "required":
        return None
    calls = " | ".join(f"call{index}" for index in range(len(tools)))
    more = "" if one_call else f"(/, ?/ ({calls}))*"
    # a model that knows no lists may end after any call, and the parser needs no bracket there
    rules = [f'start: "[" ({calls}) {more} "]"?']
    rules += [f"call{index}: %json {_written(_call(tool))}" for index, tool in enumerate(tools)]
    return {"grammar": "\n".join(rules)}


def _written(schema: dict[str, Any]) -> str:
    """A schema as JSON, in which no text looks like the mark of another notation."""
    return json.dumps(schema | {"x-guidance": _SPACES}).replace("::=", "\\u003a:=")


def _call(tool: Tool) -> dict[str, Any]:
    """The schema of a call: the parser wants the name before the parameters."""
    return {
        "type": "object",
        "properties": {
            "name": {"const": tool.function.name},
            "parameters": _moved(_arguments(tool), "#/properties/parameters"),
        },
        "required": ["name", "parameters"],
        "additionalProperties": False,
    }


def _arguments(tool: Tool) -> dict[str, Any]:
    """The schema of a call's arguments, which has no more than the tool names unless it says so."""
    parameters = tool.function.parameters
    if not parameters:
        return _NO_ARGUMENTS
    closed = {} if _ELSEWHERE & parameters.keys() else {"additionalProperties": False}
    return {**closed, **parameters, "type": "object"}


def _moved(schema: Any, place: str) -> Any:
    """A schema whose references to itself hold where it stands at `place` of another."""
    if isinstance(schema, list):
        return [_moved(item, place) for item in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _moved(value, place) for key, value in schema.items()}
    reference = moved.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = place + reference[1:]
    return moved
