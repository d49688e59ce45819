"""`quire batch`, run in this process on the demo model, and as a process that is interrupted."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import quire
from quire.entrypoints.cli import main

from .conftest import CARS, FRANCE, ITALY, read_lines, write_lines

GREEDY = ("--temperature", "0", "--enforce-eager")
PROGRAM = "import sys; from quire.entrypoints.cli import main; sys.exit(main())"


def batch(*argv: str | Path) -> int:
    return main(["batch", *(str(arg) for arg in argv)])


def test_it_answers_and_ends_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": FRANCE}, {"messages": ITALY}, {"prompt": None}]
    source, output = write_lines(tmp_path / "x.jsonl", *rows), tmp_path / "y.jsonl"
    assert batch(source, output, *GREEDY) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.startswith(f"{output}: 3 rows, 1 error; ")
    assert captured.out.count("\n") == 1
    france, italy, _ = read_lines(output)
    assert "Paris" in france["text"]
    assert "Rome" in italy["text"]
    assert {france["finish_reason"], italy["finish_reason"]} == {"stop"}, "nothing is cut short"


def test_flags_are_those_of_generate_and_of_the_job(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_lines(tmp_path / "x.jsonl", {"q": CARS, "lora": "sql"}, {"q": CARS})
    flags = ["--prompt-column", "q", "--result_prefix=a_", "--max-tokens", "32", "--dtype=float32"]
    sql = Path(__file__).resolve().parents[3] / "examples" / "sql_adapter"
    flags += ["--enable-lora", "--lora-modules", f"sql={sql}"]
    assert batch(source, tmp_path / "y.jsonl", *GREEDY, *flags) == 0
    with_adapter, without = (one["a_text"] for one in read_lines(tmp_path / "y.jsonl"))
    assert "SELECT" in with_adapter
    assert with_adapter != without


def test_a_finished_job_is_refused_until_it_may_overwrite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = write_lines(tmp_path / "x.jsonl", {"prompt": FRANCE}), tmp_path / "y.jsonl"
    output.write_text("something else\n")
    assert batch(source, output, *GREEDY) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"quire: error: {output} is there, ")
    assert (captured.err.count("\n"), captured.out) == (1, "")
    assert batch(source, output, *GREEDY, "--overwrite") == 0
    assert "Paris" in read_lines(output)[0]["text"]


def test_a_dead_engine_is_1_and_says_what_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_lines(tmp_path / "x.jsonl", {"prompt": FRANCE})

    class Dying(quire.AsyncEngine):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.close()

    monkeypatch.setattr(quire, "AsyncEngine", Dying)
    assert batch(source, tmp_path / "y.jsonl", *GREEDY) == 1
    error = capsys.readouterr().err
    assert error.startswith("quire: error: this engine was closed")
    assert "the same command goes on behind it" in error


def test_help_tells_of_forms_and_does_not_import_jax() -> None:
    code = f"{PROGRAM[: PROGRAM.index('sys.exit')]}\ntry:\n    main()\nfinally:\n"
    code += "    assert not {'jax', 'numpy', 'transformers', 'pyarrow'} & sys.modules.keys()"
    command = [sys.executable, "-W", "error", "-c", code, "batch", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for word in (
        "usage: quire batch INPUT OUTPUT",
        "--overwrite",
        "--lora-modules",
        "--max-tokens",
    ):
        assert word in done.stdout


@pytest.mark.parametrize("name", ["y.jsonl", "y.parquet"])
def test_ctrl_c_is_130_and_the_job_goes_on(tmp_path: Path, name: str) -> None:
    rows = [{"id": i, "prompt": FRANCE, "max_tokens": 24, "ignore_eos": True} for i in range(200)]
    source, output = write_lines(tmp_path / "x.jsonl", *rows), tmp_path / name
    flags = [*GREEDY, "--max-num-seqs", "2"]
    command = [sys.executable, "-c", PROGRAM, "batch", str(source), str(output), *flags]
    journal = output if name == "y.jsonl" else tmp_path / f"{name}.results.jsonl"
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        while not (journal.exists() and journal.stat().st_size):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert error.startswith("quire: interrupted. What is answered so far is kept: ")
    assert (tmp_path / f"{name}.state.json").exists()
    answered = len(read_lines(journal))
    assert 0 < answered < 200
    assert batch(source, output, *flags[:-2]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"x.jsonl", name}
    if name == "y.jsonl":
        assert [one["id"] for one in read_lines(output)] == list(range(200))


def test_a_bar_counts_rows_and_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_lines(tmp_path / "x.jsonl", {"prompt": FRANCE}, "broken", {"prompt": FRANCE})
    quire.batch.run(source, tmp_path / "y.jsonl", sampling_params={"temperature": 0})
    shown = capsys.readouterr().err
    assert "Answering" in shown
    assert "3/3" in shown
    assert "1 error" in shown
    assert json.loads((tmp_path / "y.jsonl").read_text().splitlines()[1])["error"]
