"""Several processes that run one engine: real ones, on this machine."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from quire import Engine, OptionError
from quire.engine.buckets import Auxiliary, Encoding, Program, Variant
from quire.engine.messages import packed, unpacked
from tests.once import once

ROOT = Path(__file__).resolve().parents[2]
FAST = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
"""Makes compilation shorter."""
LONGEST = 60
"""Seconds until all processes know that one is lost."""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def running(folder: Path, count: int, *flags: str) -> Iterator[list[subprocess.Popen[str]]]:
    """So many processes, which have two devices together."""
    port, made = free_port(), []
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={2 // count} {FAST}",
    }
    for number in range(count):
        arguments = [str(folder), str(count), str(number), str(port), *flags]
        command = [sys.executable, "-m", "tests.engine.several_processes", *arguments]
        own = {"JAX_COMPILATION_CACHE_DIR": str(folder / f"xla-{number}")}
        with (folder / f"{count}-{number}.err").open("w") as errors:
            options: dict[str, Any] = {"cwd": ROOT, "env": environment | own, "text": True}
            started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, **options)
        made.append(started)
    try:
        yield made
    finally:
        for process in made:
            process.kill()
            process.communicate()


def answered(folder: Path, count: int) -> Any:
    """What the first of so many processes found, once all have ended well."""
    with running(folder, count) as processes:
        outputs = [process.communicate(timeout=400)[0] for process in processes]
        codes = [process.returncode for process in processes]
    errors = [(folder / f"{count}-{number}.err").read_text() for number in range(count)]
    assert codes == [0] * count, "\n".join(errors)
    told = [line for output in outputs for line in output.splitlines() if is_ours(line)]
    [found] = told  # by the first
    return json.loads(found)


def is_ours(line: str) -> bool:
    """JAX's way to connect CPUs says on stdout that it has."""
    return not line.startswith("[Gloo]")


@pytest.fixture(scope="session")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    def find() -> list[Any]:
        folder = tmp_path_factory.mktemp("processes")
        return [answered(folder, count) for count in (1, 2)]

    return once(tmp_path_factory, "processes", find)


CASES = ("greedy", "sampled", "biased", "prompt", "adapters", "pictures", "grammar")


@pytest.mark.parametrize("case", CASES)
def test_two_processes_agree_with_one(found: Any, case: str) -> None:
    alone, together = found
    assert alone.keys() == set(CASES)
    assert together[case] == alone[case]


def pair(first: list[str], second: list[str]) -> str:
    """What the first of two Pythons prints; the second ends well, in silence."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": FAST}
    options: dict[str, Any] = {"cwd": ROOT, "env": environment, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, *second], **options, text=True) as other:
        command = [sys.executable, *first]
        done = subprocess.run(command, **options, timeout=300, check=True, text=True)
        said, _ = other.communicate(timeout=LONGEST)
    assert other.returncode == 0
    assert not list(filter(is_ours, said.splitlines()))
    return done.stdout


def test_the_program_of_the_page() -> None:
    page = (ROOT / "docs" / "clusters.md").read_text()
    [program] = re.findall(r"^```python processes\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    program = program.replace("8476", str(free_port()))
    assert "process_id=0" in program
    other = program.replace("process_id=0", "process_id=1")
    assert " Paris." in pair(["-c", program], ["-c", other])


def test_commands_follow() -> None:
    run = "import sys; from quire.entrypoints.cli import main; sys.exit(main())"
    command = ["-c", run, "generate", "The capital of France is", "--temperature", "0"]
    command += ["--tensor-parallel-size", "2", "--num-processes", "2"]
    command += ["--coordinator-address", f"127.0.0.1:{free_port()}", "--process-id"]
    assert " Paris." in pair([*command, "0"], [*command, "1"])


@pytest.mark.parametrize("lost", [0, 1])
def test_a_process_that_is_lost_ends_the_others(tmp_path: Path, lost: int) -> None:
    with running(tmp_path, 2, "--endless") as processes:
        said = next(filter(is_ours, processes[0].stdout or []), "")
        assert said == "going\n", (tmp_path / "2-0.err").read_text()
        time.sleep(1)
        processes[lost].send_signal(signal.SIGKILL)
        other = processes[1 - lost]
        said, _ = other.communicate(timeout=LONGEST)
    told = said + (tmp_path / f"2-{1 - lost}.err").read_text()
    assert f"process {lost} of 2 was lost" in told or "another task died" in told
    assert lost == 0 or "process 1 of 2 was lost, so the engine stopped on all of them" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_processes": 2}, "need coordinator_address"),
        ({"process_id": 0}, "need coordinator_address"),
        ({"coordinator_address": "localhost:1"}, "needs num_processes, and process_id from 0"),
        (
            {"coordinator_address": "localhost:1", "num_processes": 2, "process_id": 2},
            "process_id=2 must be from 0 to 1",
        ),
    ],
)
def test_what_is_wrong_is_said(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Engine(**options)


def test_one_process_leads(engine: Engine) -> None:
    assert engine.leads
    with pytest.raises(OptionError, match="does not lead"):
        engine.follow()


@pytest.mark.parametrize(
    "key",
    [
        Program(True, 4, 4, Variant.GREEDY),
        Program(False, 64, 8, Variant.FULL, one_path=True, adapters=True),
        Encoding("image", 3),
        Auxiliary.WRITE_MASKS,
    ],
)
def test_messages_come_as_they_were_sent(key: Any) -> None:
    rng = np.random.default_rng(0)
    half = rng.normal(size=(2, 3)).astype(jnp.bfloat16)
    arrays = (
        np.int32(7),
        {"pixels": rng.normal(size=(2, 1, 5)).astype(np.float32), "ids": np.arange(3)},
        half.T,  # not contiguous
        np.zeros((0, 4), np.uint16),
    )
    told, came = unpacked(packed(key, arrays))
    assert told == key
    assert isinstance(came[1], dict)
    for sent, got in zip(
        (arrays[0], *arrays[1].values(), *arrays[2:]),
        [came[0]] + [*came[1].values(), *came[2:]],
        strict=True,
    ):
        assert got.dtype == sent.dtype
        assert got.shape == np.shape(sent)
        assert (got == sent).all()
