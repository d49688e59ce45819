"""A model shared out among devices: the CPU of another process, split into eight."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from quire import Engine
from quire.errors import OptionError

MODELS = Path(__file__).resolve().parent.parent / "fixtures" / "models"
NAMES = ("llama3", "opt", "phi3", "qwen2", "qwen3")
WIDE = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "num_attention_heads": 16,
    "num_hidden_layers": 2,
    "num_key_value_heads": 8,
    "vocab_size": 101,
}
"""Eight KV heads, and a vocabulary that no size divides."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], dict[str, Any]]:
    """By the name of a model and the number of devices."""
    wide = tmp_path_factory.mktemp("wide")
    (wide / "config.json").write_text(json.dumps(WIDE))
    cases = [[str(MODELS / name), (1, 2), {}, name == "llama3"] for name in NAMES]
    cases.append([str(wide), (1, 2, 4, 8), {"load_format": "dummy"}, False])
    script = Path(__file__).with_name("several_devices.py")
    flags = "--xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(cases)],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    every = json.loads(done.stdout.splitlines()[-1])
    wide_name = {str(wide): "wide"}
    return {
        (wide_name.get(one["folder"], Path(one["folder"]).name), one["size"]): one for one in every
    }


CASES = [*((name, 2) for name in NAMES), ("wide", 2), ("wide", 4), ("wide", 8)]


@pytest.mark.parametrize(("name", "size"), CASES)
def test_tokens_are_those_of_one_device(found: dict[Any, Any], name: str, size: int) -> None:
    one, several = found[name, 1], found[name, size]
    for kind in one.keys() & {"greedy", "again", "sampled"}:
        assert several[kind] == one[kind]


def test_new_weights_go_to_their_places(found: dict[Any, Any]) -> None:
    assert found["llama3", 2]["again"] == found["llama3", 2]["greedy"]


@pytest.mark.parametrize(("name", "size"), CASES)
def test_every_device_has_its_heads_of_the_pool(
    found: dict[Any, Any], name: str, size: int
) -> None:
    one, several = found[name, 1], found[name, size]
    assert set(one["pool"]) == {1}
    assert set(several["pool"]) == {size}
    assert [heads * size for heads in several["heads"]] == one["heads"]


@pytest.mark.parametrize(("name", "size"), CASES)
def test_nothing_but_logits_is_gathered(found: dict[Any, Any], name: str, size: int) -> None:
    """Weights and the pool stay where they are."""
    rows = 4
    vocabulary = 101 if name == "wide" else 112
    whole = vocabulary % size != 0
    kinds = {kind.split("{")[0] for kind in found[name, size]["gathered"]}
    assert kinds == (set() if whole else {f"f32[{rows},{vocabulary}]"})
    assert not found[name, 1]["gathered"]


def test_the_command_of_the_page() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "several_devices.md"
    [command] = re.findall(r"^```sh\n(.*)\n```", page.read_text(), re.MULTILINE)
    parts = shlex.split(command)
    start = parts.index("quire")
    code = "import sys; from quire.entrypoints.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *parts[start + 1 :]],
        env=os.environ | dict(part.split("=", 1) for part in parts[:start]),
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    assert "Paris" in done.stdout


def test_more_devices_than_there_are() -> None:
    with pytest.raises(OptionError, match=r"tensor_parallel_size=2, but JAX sees 1 cpu device"):
        Engine(str(MODELS / "llama3"), tensor_parallel_size=2, skip_tokenizer_init=True)


def test_a_size_that_does_not_divide_the_model() -> None:
    with pytest.raises(OptionError, match=r"2 KV heads and the 24 columns .* may be 1, 2\."):
        Engine(str(MODELS / "llama3"), tensor_parallel_size=3, skip_tokenizer_init=True)
