"""What a benchmark found, as one line of JSON."""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ... import OptionError, __version__

NO_OPTIONS = frozenset({"run", "benchmark", "model", "output", "api_key"})
"""Arguments that are no conditions of a figure, or a secret."""


def check_output(path: str | None) -> None:
    """Raises OptionError where nothing could be appended to the file `path`; None is no file."""
    if path is None:
        return
    try:
        Path(path).open("a").close()
    except OSError as error:
        raise OptionError(f"--output {path} cannot be written: {error}.") from error


def machine() -> dict[str, Any]:
    """The devices of this process and its JAX. Starts JAX: after an engine was made, or alone."""
    import jax

    return {
        "device": jax.devices()[0].device_kind,
        "num_devices": jax.device_count(),
        "jax": jax.__version__,
    }


NO_MACHINE: dict[str, Any] = {"device": None, "num_devices": None, "jax": None}
"""Where the devices are another program's."""


def record(
    args: argparse.Namespace, machine: Mapping[str, Any], figures: Mapping[str, Any]
) -> dict[str, Any]:
    """All that the line says; options that were not given and have no default are left out."""
    options = {
        name: str(value) if value == math.inf else value
        for name, value in vars(args).items()
        if name not in NO_OPTIONS and value is not None
    }
    return {
        "benchmark": args.benchmark,
        "model": args.model or "demo",
        "conditions": {**machine, "quire": __version__, "options": options},
        **figures,
    }


def write(line: Mapping[str, Any], output: str | None) -> None:
    """Prints a record, and appends it to the file `output`."""
    text = json.dumps(line, allow_nan=False)
    print(text, flush=True)
    if output is not None:
        with Path(output).open("a", encoding="utf-8") as file:
            file.write(text + "\n")


def say(text: str) -> None:
    """Tells somebody who watches what happens; stdout is for the record."""
    print(text, file=sys.stderr, flush=True)


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that `percent` of the values do not exceed, interpolated between neighbours."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def rounded(value: float) -> float:
    """Six significant digits: more than any timing has."""
    return float(f"{value:.6g}")
