"""The programs in examples/ run, on the demo model."""

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run(
    name: str, *argv: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> list[str]:
    monkeypatch.setattr(sys, "argv", [name, *argv])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out.splitlines()


def test_offline_inference(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = run("offline_inference.py", monkeypatch=monkeypatch, capsys=capsys)
    assert len(lines) == 4
    assert lines[2].startswith("'The capital of France is' -> ")


def test_offline_inference_chat(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = run("offline_inference_chat.py", monkeypatch=monkeypatch, capsys=capsys)
    assert len(lines) == 3
    assert "Paris" in lines[0]
    assert "7" in lines[1].removeprefix("What is 3 + 4?")
    assert "Tuesday" in lines[2]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_quickstart() -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit it without outputs"
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    printed = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])
    )
    assert "Paris" in printed
