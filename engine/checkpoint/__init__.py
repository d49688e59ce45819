"""Finding, reading and writing the weights of a model, and the config that goes with them."""

from .config_file import read_config, read_generation_config, read_preprocessor_config
from .dtype import resolve_dtype
from .hub import find_model
from .loader import load_params
from .parts import Source, find_parts, joined
from .saver import save_params
from .tensors import open_tensors

__all__ = [
    "Source",
    "find_model",
    "find_parts",
    "joined",
    "load_params",
    "open_tensors",
    "read_config",
    "read_generation_config",
    "read_preprocessor_config",
    "resolve_dtype",
    "save_params",
]
