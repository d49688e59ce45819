"""Chat templates from files, under the name programs written for vLLM import."""

from .. import load_chat_template

__all__ = ["load_chat_template"]
