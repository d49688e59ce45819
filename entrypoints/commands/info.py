"""`quire info`: what a model is, without its weights."""

import argparse
from typing import TYPE_CHECKING

from ..arguments import MODEL_HELP, add_engine_options, engine_options

if TYPE_CHECKING:
    from ... import ModelInfo

OPTIONS = frozenset({"revision", "download_dir", "dtype", "hf_overrides", "max_model_len"})


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `info`."""
    text = "show a model's architecture, size and memory needs, without loading its weights"
    parser = commands.add_parser("info", help=text, description=text.capitalize() + ".")
    text = f"{MODEL_HELP} (default: demo)"
    parser.add_argument("model", nargs="?", metavar="MODEL", help=text)
    add_engine_options(parser, OPTIONS)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints one fact a line."""
    from ... import model_info

    for name, value in _facts(model_info(args.model, **engine_options(args))).items():
        print(f"{name:<16}{value}")
    return 0


def _facts(info: "ModelInfo") -> dict[str, str]:
    whole = info.kv_bytes_per_token * info.max_model_len
    return {
        "architecture": info.architecture,
        "folder": info.folder,
        "parameters": f"{info.num_parameters:,}",
        "weights": f"{_bytes(info.weight_bytes)} ({info.dtype})",
        "layers": str(info.num_layers),
        "KV heads": f"{info.num_kv_heads} of size {info.head_dim}",
        "vocabulary": f"{info.vocab_size:,} tokens",
        "longest text": f"{info.max_model_len:,} tokens, prompt and output together",
        "KV memory": f"{_bytes(info.kv_bytes_per_token)} a token, {_bytes(whole)} at full length",
    }


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:,.4g} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"
