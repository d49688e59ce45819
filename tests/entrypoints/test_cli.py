"""The `quire` command, run in this process on the demo model, and once as a process."""

import io
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import quire
from quire.entrypoints.cli import main

FRANCE = "The capital of France is"
GREEDY = ("--temperature", "0", "--max-tokens", "12")


def run(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> str:
    """What the command prints, which must succeed."""
    status = main([str(arg) for arg in argv])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return captured.out


def fail(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> str:
    """The one line a command fails with."""
    assert main([str(arg) for arg in argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("quire: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def write_lines(path: Path, *lines: object) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def type_in(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))


class Unloadable:
    """Stands for the engine where nothing may run."""

    def __init__(self, *args: object, **options: object) -> None:
        raise AssertionError("the model was loaded")


def test_generate_prints_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Paris" in run(capsys, "generate", FRANCE, *GREEDY)


def test_generate_prints_prompts_above_several_texts(capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "generate", FRANCE, "The capital of Italy is", *GREEDY)
    first, second = out.split("==> The capital of Italy is <==")
    assert first.startswith(f"==> {FRANCE} <==\n")
    assert "Paris" in first
    assert "Rome" in second


def test_streamed_is_not_streamed(capsys: pytest.CaptureFixture[str]) -> None:
    whole = run(capsys, "generate", FRANCE, *GREEDY)
    assert run(capsys, "generate", FRANCE, "--stream", *GREEDY) == whole


def test_options_may_be_written_as_in_python(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--max_tokens=1", "--max_model_len", "64", "--temperature", "0"]
    assert len(run(capsys, "generate", FRANCE, *options).split()) == 1


def test_a_file_is_answered_in_order(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    question = [{"role": "user", "content": "What is the capital of Italy?"}]
    lines: list[dict[str, Any]] = [
        {"id": "a", "prompt": FRANCE},
        {"messages": question, "max_tokens": 24},
        {"prompt": FRANCE, "n": 2, "temperature": 1.0, "max_tokens": 2, "ignore_eos": True},
    ]
    questions, answers = write_lines(tmp_path / "x.jsonl", *lines), tmp_path / "y.jsonl"
    run(capsys, "generate", "--input", questions, "--output", answers, *GREEDY, "--enforce-eager")
    first, second, third = read = [json.loads(line) for line in answers.read_text().splitlines()]
    assert all(line.items() <= answer.items() for line, answer in zip(lines, read, strict=True))
    assert (first["id"], first["prompt"]) == ("a", FRANCE)
    assert "Paris" in first["text"]
    assert "Rome" in second["text"]
    assert second["finish_reason"] == "stop"
    assert third["finish_reason"] == ["length", "length"]
    assert third["completion_tokens"] == [2, 2]
    assert first["prompt_tokens"] == third["prompt_tokens"] > 0


def test_lines_come_and_go_through_pipes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    type_in(monkeypatch, json.dumps({"prompt": FRANCE, "max_tokens": 3}))
    out = run(capsys, "generate", "--input", "-", "--enforce-eager")
    assert json.loads(out)["completion_tokens"] <= 3


def test_a_bad_line_is_told_before_anything_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(quire, "Engine", Unloadable, raising=False)
    path = write_lines(tmp_path / "x.jsonl", {"prompt": FRANCE}, {"prompt": FRANCE, "top_p": 2})
    assert f"{path}, line 2: " in fail(capsys, "generate", "--input", path)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["generate"], "give either prompts or --input"),
        (["generate", "a", "--input", "x"], "give either prompts or --input"),
        (["generate", "a", "--top-p", "0"], "top_p=0.0"),
        (["generate", "a", "--output", "y"], "--output needs --input"),
        (["generate", "a", "b", "--stream"], "--stream shows one text"),
        (["generate", "--input", "/nowhere/x.jsonl"], "--input /nowhere/x.jsonl cannot be read"),
        (["generate", "a", "--model", "/nowhere/m"], "/nowhere/m"),
        (["generate", "a", "--dtype", "int3"], "dtype='int3'"),
        (["chat", "--min-p", "7"], "min_p=7.0"),
        (["info", "no-such/model"], "no-such/model"),
        (["convert", "/nowhere/m", "/nowhere/out"], "/nowhere/m"),
    ],
)
def test_mistakes_are_told_in_one_line(
    capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert message in fail(capsys, *argv)


def test_an_output_that_cannot_be_written_is_told_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(quire, "Engine", Unloadable, raising=False)
    path = write_lines(tmp_path / "x.jsonl", {"prompt": FRANCE})
    error = fail(capsys, "generate", "--input", path, "--output", tmp_path / "no" / "y.jsonl")
    assert "cannot be written" in error


def test_interrupted_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(quire, "Engine", interrupted, raising=False)
    assert main(["generate", FRANCE]) == 130


def test_chat_remembers_until_it_is_reset(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    question = "What is the capital of Italy?"
    type_in(monkeypatch, question, "/nonsense", "", "/reset", question, "/exit", "never read")
    assert main(["chat", *GREEDY, "--enforce-eager"]) == 0
    captured = capsys.readouterr()
    first, second = captured.out.splitlines()
    assert first == second
    assert "Rome" in first
    assert "There is no command /nonsense" in captured.err


def test_chat_tells_the_model_what_was_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    template = tmp_path / "count.jinja"
    template.write_text("{% if messages | length > 2 %}" + FRANCE + "{% else %}2 + 3 ={% endif %}")
    type_in(monkeypatch, "one", "two")
    out = run(
        capsys, "chat", *GREEDY, "--enforce-eager", "--chat-template", template, "--system", "s"
    )
    first, second = out.splitlines()[0], out.splitlines()[-1]
    assert "5" in first
    assert "Paris" in second


def test_chat_survives_mistakes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    type_in(monkeypatch, "word " * 100, "What is the capital of Italy?")
    assert main(["chat", *GREEDY, "--enforce-eager", "--max-model-len", "64"]) == 0
    captured = capsys.readouterr()
    assert "Rome" in captured.out
    assert captured.err.startswith("quire: error: ")
    assert "/reset starts over" in captured.err


class InterruptingOutput(io.StringIO):
    """A screen before which somebody presses Ctrl-C when the first word appears."""

    pressed = False

    def write(self, text: str) -> int:
        if text.strip() and not self.pressed:
            self.pressed = True
            signal.raise_signal(signal.SIGINT)
        return super().write(text)


def test_ctrl_c_stops_an_answer_and_not_the_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = InterruptingOutput()
    monkeypatch.setattr(sys, "stdout", screen)
    type_in(monkeypatch, "What is the capital of France?", "What is the capital of Italy?")
    assert main(["chat", *GREEDY, "--enforce-eager"]) == 0
    assert screen.pressed
    assert "Paris" not in screen.getvalue()
    assert "Rome" in screen.getvalue()


def test_info_tells_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    facts = dict(line.split(maxsplit=1) for line in run(capsys, "info").splitlines())
    assert facts["architecture"].startswith("Llama")
    assert 1e6 <= int(facts["parameters"].replace(",", "")) <= 2.5e6
    assert "16" in facts["weights"]
    shorter = run(capsys, "info", "--max-model-len", "64")
    assert "64 tokens, prompt and output together" in shorter


def test_a_converted_model_says_the_same(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    demo = Path(quire.__file__).resolve().parent / "models" / "demo"
    out = tmp_path / "converted"
    assert run(capsys, "convert", demo, out).strip() == str(out)
    same = run(capsys, "generate", FRANCE, *GREEDY)
    assert run(capsys, "generate", FRANCE, *GREEDY, "--model", out) == same
    assert "is not an empty folder" in fail(capsys, "convert", demo, out)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"quire {quire.__version__}\n"


def python(code: str, *argv: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-W", "error", "-c", code, *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_help_does_not_import_jax() -> None:
    code = """
import sys
from quire.entrypoints.cli import main
try:
    main()
finally:
    assert not {"jax", "numpy", "transformers"} & sys.modules.keys()
"""
    commands = ["generate"], ["chat"], ["convert"], ["info"], ["bench"], ["bench", "serve"]
    for command in ([], *commands):
        done = python(code, *command, "--help")
        assert done.returncode == 0, done.stderr
        assert "usage: quire" in done.stdout


def test_the_process_ends_cleanly() -> None:
    code = "import sys; from quire.entrypoints.cli import main; sys.exit(main())"
    done = python(code, "generate", FRANCE, *GREEDY)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Paris" in done.stdout
