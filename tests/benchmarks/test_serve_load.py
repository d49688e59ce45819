"""The load of streaming clients, in small, on a server of the demo model."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.live_server import SMALL, live_server


def load() -> Any:
    """benchmarks/serve_load.py, without its folder on the path; its probe is a new process."""
    path = Path(__file__).parents[2] / "benchmarks" / "serve_load.py"
    spec = importlib.util.spec_from_file_location("serve_load", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["serve_load"] = module  # where dataclasses look, and whence the probe is sent
    spec.loader.exec_module(module)
    return module


METRICS = """\
# HELP vllm:kv_cache_usage_perc Share of the KV pages in use; 1 is all.
vllm:kv_cache_usage_perc{model_name="demo"} 0.25
vllm:num_requests_running{model_name="demo"} 2.0
vllm:num_requests_waiting{model_name="demo"} 1.0
vllm:cache_config_info{model_name="demo",block_size="16",num_gpu_blocks="8"} 1.0
"""


def test_what_a_server_holds() -> None:
    serve_load = load()
    assert serve_load.holdings(METRICS) == {"pages_in_use": 2, "running": 2, "waiting": 1}
    with pytest.raises(ValueError, match="no kv_cache_usage_perc"):
        serve_load.holdings(METRICS.replace("usage_perc{", "usage{"))


def test_pauses_are_told_longest_first() -> None:
    found = load().pauses([(0.0, 0.001), (1.04, 0.5), (2.0, 0.02)])
    assert found[0] == {"at_s": 1.0, "ms": 500.0}
    assert [one["ms"] for one in found] == [500.0, 20.0, 1.0]


@pytest.mark.slow
def test_a_small_crowd(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    serve_load = load()
    monkeypatch.syspath_prepend(str(Path(serve_load.__file__).parent))  # for the probe
    with live_server(*SMALL) as address:
        argv = ["--base-url", f"{address}/v1", "--clients", "4", "--seconds", "2"]
        monkeypatch.setattr(sys, "argv", ["x", *argv, "--max-tokens", "16", "--hang-up", "0.5"])
        assert serve_load.main() == 0
        monkeypatch.setattr(sys, "argv", ["x", *argv, "--model", "no such model"])
        assert serve_load.main() == 1
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["requests"] > first["hung_up"] > 0
    assert (first["failed"], first["pages_in_use"], first["running"]) == (0, 0, 0)
    assert first["first_token_s"]["p50"] <= first["first_token_s"]["max"] < 60
    assert first["tokens_per_s"] > 0
    assert second["failed"] == second["requests"] > 0
    assert any("404" in error for error in second["errors"])
