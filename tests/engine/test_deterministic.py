"""One program for everything: bits that do not depend on the batch, on chunks or on the cache."""

import json
from pathlib import Path

from quire import Engine
from tests.deterministic import check_mixes
from tests.engine.conftest import SMALL


def test_results_are_the_same_alone_and_in_any_batch(model_folder: Path) -> None:
    vocab_size = json.loads((model_folder / "config.json").read_text())["vocab_size"]
    options = {**SMALL, "enforce_eager": True, "use_tqdm_on_load": False}
    with Engine(model_folder, deterministic=True, **options) as engine:
        check_mixes(engine, mixes=12, vocab_size=vocab_size)
        step_programs = engine.stats().programs_compiled
    assert step_programs <= 3, "one program for steps, others only for tables"
