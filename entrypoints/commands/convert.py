"""`quire convert`: a checkpoint of any readable form as an Orbax checkpoint."""

import argparse
import sys

from ..arguments import MODEL_HELP, add_engine_options, engine_options

OPTIONS = frozenset({"revision", "download_dir", "dtype", "load_format", "hf_overrides"})


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `convert`."""
    parser = commands.add_parser(
        "convert",
        help="write a model as an Orbax checkpoint",
        description="Writes a model's weights as an Orbax checkpoint, with its config and "
        "tokenizer, to a new folder that Engine, generate and chat take as a model.",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("out", metavar="OUT", help="folder to write; it must not exist")
    add_engine_options(parser, OPTIONS)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Loads with the least memory beside the weights, and saves."""
    from ... import Engine

    tokens = 16
    smallest = {"max_model_len": tokens, "max_num_batched_tokens": tokens, "max_num_seqs": 1}
    options = {"use_tqdm_on_load": sys.stderr.isatty(), **smallest, **engine_options(args)}
    with Engine(args.model, enforce_eager=True, skip_tokenizer_init=True, **options) as engine:
        engine.save(args.out)
    print(args.out)
    return 0
