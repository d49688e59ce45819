"""`quire bench startup`: how long a new process takes to its first token."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from ... import QuireError
from ..arguments import engine_options
from .report import record, rounded, say

CHILD = f"{__package__}.first_token"
PARTS = {
    "python_s": ("started", "begun"),
    "import_s": ("begun", "imported"),
    "engine_s": ("imported", "constructed"),
    "generate_s": ("constructed", "first_token"),
}
"""The parts of the time to the first token: from one moment to another."""


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The record of `args.runs` cold starts, each followed by a warm one."""
    options = {
        "seed": args.seed,
        "skip_tokenizer_init": args.skip_tokenizer_init,
        "use_tqdm_on_load": sys.stderr.isatty(),
        **engine_options(args),
    }
    cold, warm = [], []
    machine: dict[str, Any] = {}
    for number in range(args.runs):
        with tempfile.TemporaryDirectory(prefix="quire-startup-") as folder:
            for kind, starts in (("cold", cold), ("warm", warm)):
                caching = {**options, "compilation_cache_dir": folder}
                found = _start(args.model, caching, until_ready=not args.first_token_only)
                starts.append(found["moments"])
                machine = found["machine"]
                seconds = _between(starts[-1:], "started", "first_token")
                say(f"{kind} start {number + 1} of {args.runs}: {seconds:.3f} s to the first token")
    return record(args, machine, {"cold": _figures(cold), "warm": _figures(warm)})


def _start(model: str | None, options: dict[str, Any], *, until_ready: bool) -> dict[str, Any]:
    """What one process says, with the moment before it was started added to its moments.

    Raises QuireError for its mistakes, and where it ended otherwise.
    """
    asked = json.dumps({"model": model, "options": options, "until_ready": until_ready})
    # -P: the current folder is no place to import from
    command = [sys.executable, "-P", "-m", CHILD, asked]
    started = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, env=_environment(), check=False)
    lines = done.stdout.decode().splitlines()
    said = json.loads(lines[-1]) if done.returncode in (0, 2) and lines else {}
    if "error" in said:
        raise QuireError(said["error"])
    if "moments" not in said:
        raise QuireError(
            f"the process that was to make a token ended with status {done.returncode}. What it "
            "wrote above tells why."
        )
    said["moments"]["started"] = started
    return said


def _environment() -> dict[str, str]:
    """This process's, without a compilation cache that would go before the engine's option."""
    return {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}


def _figures(starts: Sequence[dict[str, float]]) -> dict[str, Any]:
    return {
        "first_token_s": rounded(_between(starts, "started", "first_token")),
        "ready_s": rounded(_between(starts, "started", "ready")) if "ready" in starts[0] else None,
        "parts": {name: rounded(_between(starts, *ends)) for name, ends in PARTS.items()},
    }


def _between(starts: Sequence[dict[str, float]], since: str, until: str) -> float:
    """The median over the starts."""
    return statistics.median(moments[until] - moments[since] for moments in starts)
