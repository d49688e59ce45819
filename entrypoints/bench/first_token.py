"""The process that `quire bench startup` starts: makes an engine, one token, and says when.

Reads `{"model": ..., "options": {...}, "until_ready": ...}` from its only argument. The last line
it prints is JSON: moments in seconds of `time.monotonic()`, which all processes of a machine share,
and the machine; or `{"error": ...}`, with status 2, for a user's mistake.
"""

import json
import sys
import time
from typing import Any

from ... import QuireError

PROMPT = [1, 2, 3, 4, 5, 6, 7, 8]


def measure(model: str | None, options: dict[str, Any], until_ready: bool) -> dict[str, Any]:
    """When each part of a start was over."""
    moments = {"begun": time.monotonic()}
    from ... import Engine, SamplingParams

    moments["imported"] = time.monotonic()
    with Engine(model, **options) as engine:
        moments["constructed"] = time.monotonic()
        engine.generate([PROMPT], SamplingParams(temperature=0, max_tokens=1), use_tqdm=False)
        moments["first_token"] = time.monotonic()
        if until_ready:
            engine.wait_until_ready()
            moments["ready"] = time.monotonic()
    from .report import machine

    return {"moments": moments, "machine": machine()}


def main() -> int:
    """Prints the line; returns the exit status."""
    asked = json.loads(sys.argv[1])
    try:
        print(json.dumps(measure(**asked)))
    except QuireError as error:
        print(json.dumps({"error": str(error)}))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
