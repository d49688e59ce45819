"""Parsers of what models write: calls of tools, and reasoning, as they stream."""

from .events import (
    Arguments,
    Call,
    CallStart,
    Content,
    Event,
    Message,
    Parser,
    Reasoning,
    Tool,
    ToolParser,
    collect,
    parse_whole,
)
from .json_calls import NamedCallParser, RequiredCallsParser
from .reasoning import Chain
from .registry import (
    REASONING_PARSERS,
    TOOL_PARSERS,
    load_plugin,
    reasoning_parser,
    register_reasoning_parser,
    register_tool_parser,
    tool_parser,
)

__all__ = [
    "REASONING_PARSERS",
    "TOOL_PARSERS",
    "Arguments",
    "Call",
    "CallStart",
    "Chain",
    "Content",
    "Event",
    "Message",
    "NamedCallParser",
    "Parser",
    "Reasoning",
    "RequiredCallsParser",
    "Tool",
    "ToolParser",
    "collect",
    "load_plugin",
    "parse_whole",
    "reasoning_parser",
    "register_reasoning_parser",
    "register_tool_parser",
    "tool_parser",
]
