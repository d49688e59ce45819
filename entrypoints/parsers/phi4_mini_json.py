"""Phi-4 mini: `functools`, then a JSON list of calls."""

from .marked_list import MarkedListParser


class Phi4MiniJsonParser(MarkedListParser):
    """Reads `functools[{"name": "f", "arguments": {...}}]`, or the list in the model's own tags."""

    markers = ("functools", "<|tool_call|>")
    closer = "<|/tool_call|>"
