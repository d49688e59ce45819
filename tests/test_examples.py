"""The programs in examples/ run, on the demo model."""

import ast
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.live_server import SMALL, TOOLS, live_server

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
LLAVA = Path(__file__).resolve().parent / "fixtures" / "vision" / "llava"


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


def test_offline_inference_lora(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = run("offline_inference_lora.py", monkeypatch=monkeypatch, capsys=capsys)
    base, adapter, mixed = (
        [line.split(": ", 1)[1] for line in lines[i : i + 3]] for i in (0, 3, 6)
    )
    assert adapter == [
        "' SELECT name FROM cars WHERE price > 300;'",
        "' SELECT model FROM boats ORDER BY speed DESC LIMIT 3;'",
        "' SELECT COUNT(*) FROM robots WHERE score < 52;'",
    ]
    assert not any("SELECT" in text for text in base)
    assert mixed == [adapter[0], base[1], adapter[2]]


def test_llava_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.linear_gradient("L").save(tmp_path / "grey.png")

    def said(*argv: str) -> list[list[str]]:
        argv = ("--model", str(LLAVA), *argv)
        lines = run("llava_example.py", *argv, monkeypatch=monkeypatch, capsys=capsys)
        return [line.split(": ", 1) for line in lines]

    drawn, given = said(), said("--image", str(tmp_path / "grey.png"))
    (prompt, answer), (chat, same_answer) = drawn
    assert (prompt, chat) == ("prompt", "chat")
    assert answer == same_answer  # the template writes the same prompt
    assert given[0][1] == given[1][1] != answer


def both_ways(*lines: str) -> list[str]:
    """What is printed of each question and its answer by `generate`, then by `chat`."""
    return [f"{way}: {line}" for way in ("generate", "chat") for line in lines]


def test_offline_inference_vision_language(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "offline_inference_vision_language.py"
    clip = ("What moves? A red circle.", "Which way does it move? Right.")
    assert run(name, monkeypatch=monkeypatch, capsys=capsys) == both_ways(
        "What is in the picture? A red circle.",
        "What is in the picture? A blue circle.",
        "What differs? The colour.",
        *clip,
    )
    lines = run(name, "--modality", "video", monkeypatch=monkeypatch, capsys=capsys)
    assert lines == both_ways(*clip)


def test_offline_inference_audio_language(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "offline_inference_audio_language.py"
    assert run(name, monkeypatch=monkeypatch, capsys=capsys) == both_ways(
        "What do you hear? I hear no sound. Please play me one.",
        "How many tones are there? Three.",
        "Which sound has more tones? The first.",
    )
    lines = run(name, "--num-audios", "1", monkeypatch=monkeypatch, capsys=capsys)
    assert lines == both_ways("How many tones are there? Three.")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The base URL of a server of the demo model, which wants the key `secret`."""
    with live_server(*SMALL, *TOOLS, "--api-key", "secret") as address:
        yield f"{address}/v1"


def run_client(
    name: str, server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> list[str]:
    argv = ("--base-url", server, "--api-key", "secret")
    return run(name, *argv, monkeypatch=monkeypatch, capsys=capsys)


def test_completion_client(
    server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, likely, streamed = run_client("openai_completion_client.py", server, monkeypatch, capsys)
    assert whole.startswith("'The capital of France is' -> ")
    assert "Paris" in whole
    assert "' P'" in likely
    assert streamed.removeprefix("Streamed:").strip() in whole


def test_chat_completion_client(
    server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = run_client("openai_chat_completion_client.py", server, monkeypatch, capsys)
    assert len(lines) == 4
    assert "Rome" in lines[0]
    assert "Tuesday" in lines[2]
    assert lines[3].endswith(" tokens)")


def test_chat_streaming_client(
    server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer, reason, usage = run_client(
        "openai_chat_streaming_client.py", server, monkeypatch, capsys
    )
    assert "Paris" in answer
    assert reason == "It ended by 'stop'."
    tokens_in, tokens_out = re.findall(r"\d+", usage)
    assert int(tokens_in) > int(tokens_out) > 0


def test_tool_client(
    server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = run_client("openai_tool_client.py", server, monkeypatch, capsys)
    result = "Getting the weather for San Francisco, CA in fahrenheit..."
    ways = [way for name in ("auto", "required", "named") for way in (name, f"{name}, streamed")]
    assert lines == [f"{way}: {result}" for way in ways]


def test_structured_output_client(
    server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    json_line, choice, regex = run_client(
        "openai_structured_output_client.py", server, monkeypatch, capsys
    )
    found = ast.literal_eval(json_line.removeprefix("JSON: "))
    assert found.keys() == {"city", "is_capital"}
    assert choice in ("choice: Berlin", "choice: Paris", "choice: Rome")
    assert regex in ("regex: Monday", "regex: Tuesday", "regex: Wednesday")


def test_every_client_is_tested() -> None:
    tested = Path(__file__).read_text()
    clients = [path.name for path in EXAMPLES.glob("openai_*.py")]
    assert len(clients) == 5
    assert not [name for name in clients if f'"{name}"' not in tested]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_quickstart() -> None:
    assert "Paris" in printed_by("quickstart.ipynb")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_lora_adapter() -> None:
    printed = printed_by("lora_adapter.ipynb")
    assert "\nmeasures ' SELECT MAX(price) FROM cars;'\n" in printed
    assert "\nsql      ' SELECT model FROM boats WHERE price > 300;'\n" in printed
    shares = "{'base': '(.+) %', 'measures': '(.+) %', 'sql': '(.+) %'}"
    one_kind, all_kinds = (list(map(int, each)) for each in re.findall(shares, printed))
    assert one_kind[0] == all_kinds[0] == 0
    assert one_kind[1] >= 80 >= all_kinds[1]
    assert min(one_kind[2], all_kinds[2]) >= 95


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_vision() -> None:
    printed = printed_by("vision.ipynb")
    assert "What is in the two pictures? A red circle and a red triangle.\n" in printed
    assert "What happens? A blue square moves up.\n" in printed


def printed_by(name: str) -> str:
    """What a notebook prints when it is run, in a kernel of its own."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit it without outputs"
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    return "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])
    )
