"""What commands do in all of several processes but the first."""

from collections.abc import Mapping
from typing import Any


def follows(model: str | None, engine_options: Mapping[str, Any]) -> bool:
    """Whether another process leads; then it has run what that had it run, and all is done."""
    if engine_options.get("coordinator_address") is None:
        return False
    from .. import Engine, leads

    if leads(**engine_options):
        return False
    with Engine(model, **{"use_tqdm_on_load": False, **engine_options}) as engine:
        engine.follow()
    return True
