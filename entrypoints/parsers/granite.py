"""Granite 3: a marker, then a JSON list of calls."""

from .marked_list import MarkedListParser


class GraniteParser(MarkedListParser):
    """Reads `<|tool_call|>[{"name": "f", "arguments": {...}}]`."""

    special_tokens = True
    markers = ("<|tool_call|>", "<tool_call>")
    closer = "</tool_call>"
