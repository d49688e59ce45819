"""Jobs that end early and go on: nothing twice, nothing lost, and never into another's output."""

import asyncio
import contextlib
import json
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tests.test_seeds import DEMO

import quire.entrypoints.batch.running as running
from quire import AdapterError, AsyncEngine, EngineClosedError, OptionError, QuireError
from quire.batch import Summary, run
from quire.entrypoints.batch import resuming
from quire.entrypoints.batch.journal import Journal
from quire.entrypoints.batch.plan import make_plan
from quire.entrypoints.batch.window import Limits

from .conftest import FRANCE, GREEDY, SMALL, read_lines, write_lines

ROWS = 40
LINES = [{"id": i, "prompt": f"{FRANCE} {i}", "max_tokens": 1 + i % 7} for i in range(ROWS)]
LINES[5] = {"id": 5, "prompt": None}


class Unused:
    """Stands for the engine's class where no row is left to answer."""

    def __init__(self, *args: object, **options: object) -> None:
        raise AssertionError("the model was loaded")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "x.jsonl", *LINES)


@pytest.fixture(scope="module")
def whole(engine: AsyncEngine, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The output of a run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    again(write_lines(folder / "x.jsonl", *LINES), folder / "y.jsonl", engine)
    return (folder / "y.jsonl").read_bytes()


def again(source: Path, output: Path, engine: AsyncEngine | None, **options: Any) -> Summary:
    options = {"sampling_params": GREEDY, "use_tqdm": False, **options}
    return run(source, output, engine=engine, **options)


def leave(source: Path, output: Path, engine: AsyncEngine, left: bytes) -> resuming.Files:
    """What a run leaves that is killed when its journal has just so many bytes."""
    plan = make_plan(source, output, None, engine, GREEDY, {})
    with Journal(plan.files.journal) as journal:
        resuming.begin(plan.files, plan.settings, journal, resumed=False)
    plan.files.journal.write_bytes(left)
    return plan.files


def results(whole: bytes) -> bytes:
    """The journal of the same job with Parquet as its output."""
    rows = [json.loads(line) for line in whole.splitlines()]
    names = ("text", "finish_reason", "prompt_tokens", "completion_tokens", "error")
    return b"".join(
        json.dumps({name: row[name] for name in names}).encode() + b"\n" for row in rows
    )


def cuts(length: int) -> Iterator[int]:
    """Where a file of some length is torn."""
    yield from (0, 1, length - 1, length)
    yield from random.Random(0).sample(range(length), 8)


def test_a_job_goes_on_from_every_byte(
    tmp_path: Path, source: Path, engine: AsyncEngine, whole: bytes
) -> None:
    output = tmp_path / "y.jsonl"
    for cut in cuts(len(whole)):
        files = leave(source, output, engine, whole[:cut])
        done = again(source, output, engine)
        assert output.read_bytes() == whole
        assert (done.rows, done.errors) == (ROWS, 1)
        assert done.resumed == whole[:cut].count(b"\n")
        assert not files.state.exists()
        output.unlink()


def test_a_table_goes_on_from_every_byte(
    tmp_path: Path, source: Path, engine: AsyncEngine, whole: bytes
) -> None:
    output, journal = tmp_path / "y.parquet", results(whole)
    expected = [{"max_tokens": None, **json.loads(line)} for line in whole.splitlines()]
    for cut in cuts(len(journal)):
        leave(source, output, engine, journal[:cut])
        done = again(source, output, engine)
        assert (done.rows, done.errors) == (ROWS, 1)
        assert done.resumed == journal[:cut].count(b"\n")
        assert pq.read_table(output).to_pylist() == expected
        assert {path.name for path in tmp_path.iterdir()} == {"x.jsonl", "y.parquet"}
        output.unlink()


@pytest.mark.parametrize("written", [False, True], ids=["before", "after"])
def test_a_job_killed_around_its_last_step_loads_no_model(
    tmp_path: Path,
    source: Path,
    engine: AsyncEngine,
    whole: bytes,
    monkeypatch: pytest.MonkeyPatch,
    written: bool,
) -> None:
    output = tmp_path / "y.parquet"
    leave(source, output, engine, results(whole))
    if written:
        output.write_text("what the run before had joined")
    monkeypatch.setattr(running, "_opened", Unused)
    done = again(source, output, engine)
    assert (done.rows, done.resumed, done.errors) == (ROWS, ROWS, 1)
    assert done.completion_tokens == 0
    assert pq.read_table(output).num_rows == ROWS
    lines = tmp_path / "y.jsonl"
    leave(source, lines, engine, whole)
    assert again(source, lines, engine).resumed == ROWS
    assert lines.read_bytes() == whole


def test_a_run_cancelled_at_any_time_goes_on(
    tmp_path: Path, source: Path, engine: AsyncEngine, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ctrl-C does, which cancels the task that answers."""
    output = tmp_path / "y.jsonl"
    append = Journal.append
    written: list[int] = []

    def interrupted(journal: Journal, lines: list[bytes]) -> None:
        append(journal, lines)
        written.append(len(lines))
        raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "append", interrupted)
    monkeypatch.setattr(running, "limits", lambda engine: Limits(asked=4, held=8))
    while sum(written) < ROWS:
        with pytest.raises(KeyboardInterrupt):
            again(source, output, engine)
        assert (tmp_path / "y.jsonl.state.json").exists()
        assert len(read_lines(output)) == sum(written)
    monkeypatch.undo()
    assert len(written) >= ROWS / 8
    assert again(source, output, engine).resumed == ROWS
    assert output.read_bytes() == whole


def test_the_death_of_the_engine_makes_no_error_rows(
    tmp_path: Path, source: Path, engine: AsyncEngine, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "y.jsonl"
    dying = AsyncEngine(DEMO, dtype="float32", max_model_len=128, **SMALL)
    append = Journal.append

    def killing(journal: Journal, lines: list[bytes]) -> None:
        append(journal, lines)
        dying.close()

    monkeypatch.setattr(Journal, "append", killing)
    monkeypatch.setattr(running, "limits", lambda engine: Limits(asked=4, held=8))
    with pytest.raises(EngineClosedError, match="closed"):
        again(source, output, dying)
    monkeypatch.undo()
    left = output.read_bytes()
    assert whole.startswith(left)
    assert 0 < left.count(b"\n") < ROWS
    with pytest.raises(EngineClosedError, match="closed"):
        again(source, output, dying)
    assert again(source, output, engine).resumed == left.count(b"\n")
    assert output.read_bytes() == whole


CHANGES: list[tuple[dict[str, Any], str]] = [
    (
        {"sampling_params": {"temperature": 0.5, "max_tokens": 8}},
        "sampling temperature was 0.0 and is 0.5",
    ),
    ({"sampling_params": {"temperature": 0}}, "sampling max_tokens was 8 and is not given"),
    ({"sampling_params": {**GREEDY, "n": 1}}, "sampling n was not given and is 1"),
    ({"result_prefix": "a_"}, "option result_prefix was '' and is 'a_'"),
    ({"prompt_column": "id"}, "option prompt_column was None and is 'id'"),
    ({"lora_modules": ["a=b"]}, r"option lora_modules was None and is \['a=b'\]"),
    ({"engine": None, "model": "other"}, "model was '.*demo' and is 'other'"),
    ({"engine": None, "dtype": "bfloat16"}, "engine dtype was 'float32' and is 'bfloat16'"),
]


@pytest.mark.parametrize("name", ["y.jsonl", "y.parquet"])
@pytest.mark.parametrize(("changes", "message"), CHANGES)
def test_a_job_does_not_go_on_with_other_settings(
    tmp_path: Path,
    source: Path,
    engine: AsyncEngine,
    whole: bytes,
    changes: dict[str, Any],
    message: str,
    name: str,
) -> None:
    left = whole[:700]
    files = leave(source, tmp_path / name, engine, left)
    options = {"engine": engine, "enable_lora": True, **changes}
    if options["engine"] is not None:
        del options["enable_lora"]
    with pytest.raises(OptionError, match=f"begun with other settings: .*{message}.*--overwrite"):
        again(source, tmp_path / name, **options)
    assert files.journal.read_bytes() == left
    assert files.state.exists()


@pytest.mark.parametrize("at", [0, 50_000, -1], ids=["beginning", "middle", "end"])
def test_a_job_does_not_go_on_with_another_input(
    tmp_path: Path, engine: AsyncEngine, whole: bytes, at: int
) -> None:
    source = write_lines(tmp_path / "x.jsonl", *({**LINES[0], "id": i} for i in range(2000)))
    output = tmp_path / "y.jsonl"
    leave(source, output, engine, whole[:700])
    lines = source.read_text().splitlines()
    lines[0 if at == 0 else -1 if at == -1 else 1000] += " "
    source.write_text("\n".join(lines) + "\n")
    with pytest.raises(OptionError, match="other settings: the input has changed"):
        again(source, output, engine)


def test_what_answers_do_not_depend_on_may_change(
    tmp_path: Path, source: Path, engine: AsyncEngine, whole: bytes
) -> None:
    output = tmp_path / "y.jsonl"
    options: dict[str, Any] = {"dtype": "float32", "max_model_len": 128, "use_tqdm_on_load": False}
    plan = make_plan(source, output, "demo", None, GREEDY, options)
    with Journal(plan.files.journal) as journal:
        resuming.begin(plan.files, plan.settings, journal, resumed=False)
        journal.append(whole.splitlines(keepends=True)[:30])
    options |= {"max_num_seqs": 2, "enforce_eager": True, "gpu_memory_utilization": 0.5}
    moved = source.rename(tmp_path / "moved.jsonl")
    assert again(moved, output, None, model="demo", **options).resumed == 30
    assert output.read_bytes() == whole


def test_other_settings_are_fine_before_anything_is_answered(
    tmp_path: Path, source: Path, engine: AsyncEngine
) -> None:
    files = leave(source, tmp_path / "y.jsonl", engine, b"")
    done = again(source, files.output, engine, sampling_params={"temperature": 0, "max_tokens": 1})
    assert (done.rows, done.resumed) == (ROWS, 0)


@pytest.mark.parametrize("name", ["y.jsonl", "y.parquet"])
def test_a_finished_output_is_not_touched(
    tmp_path: Path, source: Path, engine: AsyncEngine, name: str
) -> None:
    output = tmp_path / name
    again(source, output, engine)
    before = output.read_bytes()
    with pytest.raises(OptionError, match=f"{name} is there, and not of a run that can go on"):
        again(source, output, engine)
    assert output.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"x.jsonl", name}


@pytest.mark.parametrize("name", ["y.jsonl", "y.parquet"])
@pytest.mark.parametrize("left", ["a finished output", "an unfinished run"])
def test_overwriting_begins_anew(
    tmp_path: Path, source: Path, engine: AsyncEngine, whole: bytes, name: str, left: str
) -> None:
    output = tmp_path / name
    if left == "a finished output":
        output.write_text("old" * 1000)
    else:
        other = write_lines(tmp_path / "other.jsonl", {"prompt": "another job"})
        leave(other, output, engine, whole[:700])
        other.unlink()
    done = again(source, output, engine, overwrite=True)
    assert (done.rows, done.resumed) == (ROWS, 0)
    count = pq.read_table(output).num_rows if name == "y.parquet" else len(read_lines(output))
    assert count == ROWS
    assert {path.name for path in tmp_path.iterdir()} == {"x.jsonl", name}


def test_overwriting_leaves_the_old_output_until_all_is_loaded(
    tmp_path: Path, source: Path, engine: AsyncEngine
) -> None:
    output = write_lines(tmp_path / "y.jsonl", "precious")
    with pytest.raises(QuireError, match="/nowhere/model"):
        again(source, output, None, model="/nowhere/model", overwrite=True)
    with pytest.raises(AdapterError, match="/nowhere/adapter"):
        again(source, output, engine, lora_modules=["a=/nowhere/adapter"], overwrite=True)
    assert output.read_text() == "precious\n"


def test_a_model_that_does_not_load_leaves_nothing(tmp_path: Path, source: Path) -> None:
    for name in ("y.jsonl", "y.parquet"):
        with pytest.raises(QuireError, match="/nowhere/model"):
            again(source, tmp_path / name, None, model="/nowhere/model")
    assert {path.name for path in tmp_path.iterdir()} == {"x.jsonl"}


def test_a_broken_state_is_told(tmp_path: Path, source: Path, engine: AsyncEngine) -> None:
    files = leave(source, tmp_path / "y.jsonl", engine, b"")
    files.state.write_text("{")
    with pytest.raises(OptionError, match="state.json cannot be read: .*--overwrite"):
        again(source, files.output, engine)


def test_a_job_runs_where_an_event_loop_does(
    tmp_path: Path, source: Path, engine: AsyncEngine, whole: bytes
) -> None:
    """As in a notebook."""

    async def main() -> Summary:
        return again(source, tmp_path / "y.jsonl", engine)

    assert asyncio.run(main()).rows == ROWS
    assert (tmp_path / "y.jsonl").read_bytes() == whole


def test_ctrl_c_ends_a_job_where_an_event_loop_runs(
    tmp_path: Path, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a notebook, whose loop does not handle it."""
    source = write_lines(tmp_path / "x.jsonl", *({**LINES[0], "id": i} for i in range(20_000)))
    output = tmp_path / "y.jsonl"
    monkeypatch.setattr(running, "limits", lambda engine: Limits(asked=1, held=1))

    def press() -> None:
        while not (output.exists() and output.stat().st_size):
            time.sleep(0.001)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    async def main() -> None:
        with pytest.raises(KeyboardInterrupt):
            again(source, output, engine)

    threading.Thread(target=press, daemon=True).start()
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        loop.run_until_complete(main())
    assert 0 < len(read_lines(output)) < 20_000
    assert (tmp_path / "y.jsonl.state.json").exists()
