"""What only several GPUs can show. Run with `pytest -m gpu` on a machine that has two."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest
from PIL import Image, ImageDraw

from quire import Engine, SamplingParams
from tests.gpu.test_gpu import MODELS, QUESTIONS, SMALL, check_adapters, check_tokens

pytestmark = pytest.mark.gpu
GREEDY = SamplingParams(temperature=0, max_tokens=12)


@pytest.fixture(autouse=True)
def two_gpus() -> None:
    if (found := len(jax.devices())) < 2:
        pytest.skip(f"needs two GPUs, and JAX sees {found}")


@pytest.mark.parametrize("sizes", [(2, 1), (1, 2)], ids=["tensor", "data"])
@pytest.mark.parametrize("name", ["llama3", "qwen2", "opt_350m"])
def test_float32_gives_the_reference_tokens(name: str, sizes: tuple[int, int]) -> None:
    tensor, data = sizes
    check_tokens(MODELS / name, tensor_parallel_size=tensor, data_parallel_size=data)


@pytest.mark.parametrize("by_xla", [False, True])
@pytest.mark.parametrize("rows", [3, 96])
def test_adapters_agree_with_float32(
    llama_folder: Path, tmp_path: Path, rows: int, by_xla: bool
) -> None:
    sums = {"tensor_parallel_size": 2, "disable_custom_all_reduce": by_xla}
    check_adapters(llama_folder, tmp_path, rows, **sums)


def test_the_kernel_sums_where_rows_fit(llama_folder: Path) -> None:
    options = {**SMALL, "load_format": "dummy", "skip_tokenizer_init": True}
    with Engine(llama_folder, dtype="bfloat16", tensor_parallel_size=2, **options) as engine:
        engine.generate([[5, 3, 9]], GREEDY, use_tqdm=False)
        programs: list[Any] = list(engine._running.programs._ready.values())
        texts = [program.as_text() for program in programs]
    assert any("peer_add_rms_norm" in text for text in texts)
    assert not any(" all-reduce(" in text for text in texts)


def test_pictures_are_seen_by_two() -> None:
    picture = Image.new("RGB", (200, 150), "white")
    ImageDraw.Draw(picture).ellipse((60, 40, 120, 100), fill="red")
    prompt = {
        "prompt": "USER: <image>\nWhat shape is this? ASSISTANT:",
        "multi_modal_data": {"image": picture},
    }
    told = []
    for size in (1, 2):
        with Engine("vision-demo", tensor_parallel_size=size, **SMALL) as engine:
            told.append(engine.generate(prompt, GREEDY, use_tqdm=False)[0].outputs[0].text)
    assert told[0] == told[1] != ""


def test_two_processes_share_a_model(tmp_path: Path) -> None:
    """Each with a GPU of its own, connected by NCCL."""
    code = f"""
import sys
from quire import Engine, SamplingParams
number = int(sys.argv[1])
options = {{"coordinator_address": "127.0.0.1:{20000 + os.getpid() % 20000}", "num_processes": 2}}
options |= {SMALL!r}
with Engine("demo", tensor_parallel_size=2, process_id=number, **options) as engine:
    if engine.leads:
        params = SamplingParams(temperature=0, max_tokens=12)
        outputs = engine.generate({QUESTIONS!r}, params, use_tqdm=False)
        print([output.outputs[0].text for output in outputs])
    else:
        engine.follow()
"""

    def environment(number: int) -> dict[str, str]:
        return os.environ | {"CUDA_VISIBLE_DEVICES": str(number)}

    command: list[Any] = [sys.executable, "-c", code]
    with subprocess.Popen([*command, "1"], env=environment(1)) as other:
        first = subprocess.run(
            [*command, "0"], env=environment(0), capture_output=True, text=True, timeout=200
        )
        other.wait(60)
    assert first.returncode == 0, first.stderr
    assert other.returncode == 0
    with Engine("demo", **SMALL) as engine:
        outputs = engine.generate(QUESTIONS, GREEDY, use_tqdm=False)
    alone = [output.outputs[0].text for output in outputs]
    assert first.stdout.splitlines()[-1] == repr(alone)
