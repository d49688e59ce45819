"""How the errors about a checkpoint are worded: all in one, long lists shortened."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ...errors import CheckpointError

LONGEST_LIST = 8

FORMATS = (
    "Quire reads safetensors (model.safetensors, or shards with model.safetensors.index.json), "
    "PyTorch files (pytorch_model.bin, or shards with pytorch_model.bin.index.json), and folders "
    "that Quire saved (quire_params/)"
)


def damaged(path: Path, what: str) -> CheckpointError:
    """The error for a file whose contents make no sense: truncated, or not what its name says."""
    return CheckpointError(
        f"{path} is damaged: {what}. The file is incomplete or of another format; download or "
        "copy it again."
    )


def shortlist(items: Iterable[str], separator: str = ", ") -> str:
    """The first few of `items`, and how many more there are."""
    items = list(items)
    shown = separator.join(items[:LONGEST_LIST])
    more = len(items) - LONGEST_LIST
    return f"{shown}{separator}and {more} more" if more > 0 else shown


def mismatch(folder: Path, problems: Mapping[str, Sequence[str]]) -> CheckpointError:
    """One error for everything in which a checkpoint differs from the model.

    Args:
        folder: the checkpoint.
        problems: what kind of problem, to one line for each case of it.
    """
    lines = [f"- {kind} ({len(cases)}): {shortlist(cases)}" for kind, cases in problems.items()]
    return CheckpointError(
        "\n".join([f"The checkpoint in {folder} does not fit the model:", *lines])
        + "\nCheck that config.json belongs to these weights and that all their files are complete."
    )
