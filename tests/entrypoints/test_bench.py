"""`quire bench`, on the demo model and against a server around it. No figure is judged."""

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

import quire
from quire.entrypoints.cli import main

DOCS = Path(__file__).parents[2] / "docs" / "benchmarks.md"
TINY = ("--num-prompts", "4", "--input-len", "8", "--output-len", "4")
SMALL = ("--max-model-len", "64", "--max-num-seqs", "4", "--max-num-batched-tokens", "16")
"""Options that compile little."""


def bench(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> dict[str, Any]:
    """The record of `quire bench ARGV`, which must be the only line on stdout."""
    status = main(["bench", *map(str, argv)])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    assert captured.out.count("\n") == 1
    return json.loads(captured.out, parse_constant=pytest.fail)


def fail(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> str:
    assert main(["bench", *map(str, argv)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def write_lines(path: Path, *lines: object) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_throughput_counts_every_token(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    output = tmp_path / "results.jsonl"
    argv = ("throughput", *TINY, *SMALL, "--runs", "3", "--output", output)
    found = bench(capsys, *argv)
    assert (found["benchmark"], found["model"]) == ("throughput", "demo")
    assert (found["requests"], found["prompt_tokens"], found["output_tokens"]) == (4, 32, 16)
    assert len(found["runs_s"]) == 3
    assert found["median_s"] == sorted(found["runs_s"])[1]
    for name, count in (("requests", 4), ("output_tokens", 16), ("total_tokens", 48)):
        assert found[f"{name}_per_s"] == pytest.approx(count / found["median_s"], rel=1e-3)
    assert json.loads(output.read_text()) == found
    bench(capsys, *argv)
    assert len(output.read_text().splitlines()) == 2


def test_conditions_say_what_was_run(capsys: pytest.CaptureFixture[str]) -> None:
    import jax

    found = bench(capsys, "throughput", *TINY, *SMALL, "--top_k", "5", "--dtype", "bfloat16")
    conditions = found["conditions"]
    assert conditions["device"] == jax.devices()[0].device_kind
    assert conditions["num_devices"] == jax.device_count()
    assert conditions["jax"] == jax.__version__
    assert conditions["quire"] == quire.__version__
    expected = {
        "num_prompts": 4,
        "input_len": 8,
        "output_len": 4,
        "range_ratio": 0.0,
        "runs": 3,
        "warmup_runs": 1,
        "seed": 0,
        "temperature": 0.0,
        "top_k": 5,
        "dtype": "bfloat16",
        "enforce_eager": True,
    }
    assert expected.items() <= conditions["options"].items()


def test_throughput_needs_no_tokenizer_and_no_weights(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    demo = Path(quire.__file__).resolve().parent / "models" / "demo"
    (tmp_path / "config.json").write_text((demo / "config.json").read_text())
    argv = ("throughput", tmp_path, "--load-format", "dummy", "--skip-tokenizer-init")
    found = bench(capsys, *argv, *TINY, *SMALL, "--runs", "1")
    assert found["model"] == str(tmp_path)
    assert found["output_tokens"] == 16


def test_throughput_of_a_dataset(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    lines = [{"prompt": "One, two,", "output_len": 2}, {"prompt": [5, 6, 7]}, {"prompt": "x"}]
    path = write_lines(tmp_path / "x.jsonl", *lines)
    argv = ("throughput", "--dataset", path, "--output-len", "3", *SMALL, "--runs", "1")
    found = bench(capsys, *argv)
    assert (found["requests"], found["output_tokens"]) == (3, 8)
    assert "input_len" not in found["conditions"]["options"]
    assert bench(capsys, *argv, "--num-prompts", "2")["output_tokens"] == 5


def test_latency_gives_a_run_and_a_token(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ("latency", "--batch-size", "2", "--input-len", "8", *SMALL, "--runs", "4")
    found = bench(capsys, *argv, "--output-len", "5")
    assert len(found["runs_s"]) == 4
    assert min(found["runs_s"]) <= found["median_s"] <= found["p90_s"] <= found["p99_s"]
    assert found["p99_s"] <= max(found["runs_s"])
    each = (found["median_s"] - found["first_token_s"]) / 4 * 1e3
    assert found["ms_per_output_token"] == pytest.approx(each, rel=1e-2, abs=1e-3)
    assert bench(capsys, *argv, "--output-len", "1")["ms_per_output_token"] is None


def test_what_is_sampled_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ("latency", "--batch-size", "1", "--input-len", "8", "--output-len", "2", "--runs", "1")
    found = bench(capsys, *argv, "--temperature", "0.8", "--top-p", "0.9", *SMALL)
    expected = {"temperature": 0.8, "top_p": 0.9}
    assert expected.items() <= found["conditions"]["options"].items()


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--enforce-eager"], ["--first-token-only"]])
def test_startup_starts_cold_and_warm(
    capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    found = bench(capsys, "startup", *SMALL, *options)
    assert found["conditions"]["device"]
    for kind in ("cold", "warm"):
        figures = found[kind]
        assert figures["first_token_s"] > 0
        if options == ["--enforce-eager"]:
            assert figures["first_token_s"] <= figures["ready_s"]
        else:
            assert figures["ready_s"] is None
        assert min(figures["parts"].values()) > 0
        assert sum(figures["parts"].values()) == pytest.approx(figures["first_token_s"], rel=1e-3)


def test_startup_tells_the_mistake_of_the_process(capsys: pytest.CaptureFixture[str]) -> None:
    error = fail(capsys, "startup", "--dtype", "int3")
    assert error.startswith("quire: error: ")
    assert "dtype='int3'" in error


def test_startup_tells_that_a_process_died(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "no-such-platform")
    error = fail(capsys, "startup")
    assert "ended with status 1. What it wrote above tells why." in error


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["throughput", "--output", "/nowhere/x"], "--output /nowhere/x cannot be written"),
        (["throughput", "--top-p", "0"], "top_p=0.0"),
        (["throughput", "--dataset", "/nowhere/x"], "--dataset /nowhere/x cannot be read"),
        (["throughput", "--dataset", "x", "--input-len", "5"], "--input-len 5 is for random"),
        (["throughput", "/nowhere/m"], "/nowhere/m"),
        (["latency", "--dtype", "int3"], "dtype='int3'"),
        (["serve", "--base-url", "localhost:8000"], "--base-url localhost:8000 must be an http"),
        (["serve", "--base-url", "http://a:b@c/v1"], "without a name and password"),
        (["serve", "--base-url", "http://127.0.0.1:9/v1"], "(ConnectionRefusedError: "),
    ],
)
def test_mistakes_are_told_in_one_line(
    capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    error = fail(capsys, *argv)
    assert error.startswith("quire: error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["throughput", "--num-prompts", "0"], "--num-prompts: 0 is not allowed: give 1 or more"),
        (["throughput", "--runs", "many"], "--runs: invalid int value: 'many'"),
        (["throughput", "--range-ratio", "1"], "1 is not allowed: give 0 or more, and below 1"),
        (["serve", "--request-rate", "nan"], "nan is not allowed: give a number above 0"),
        (["serve", "--endpoint", "embeddings"], "invalid choice: 'embeddings'"),
        (["startup", "--compilation-cache-dir", "x"], "unrecognized arguments"),
        ([], "BENCHMARK"),
    ],
)
def test_unreadable_values_are_refused(
    capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["bench", *argv])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_an_output_that_the_model_cuts_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    error = fail(capsys, "latency", "--input-len", "60", "--output-len", "9", *SMALL)
    assert "of 60 tokens, got 4 of 9 more" in error


Server = tuple[Any, str]


def test_serve_completions(capsys: pytest.CaptureFixture[str], shell: Server) -> None:
    server, url = shell
    server.seen.clear()
    argv = ("serve", "--base-url", url, *TINY, "--api-key", "secret", "--max-concurrency", "2")
    found = bench(capsys, *argv)
    assert (found["model"], found["requests"], found["failed"]) == ("demo", 4, 0)
    assert (found["prompt_tokens"], found["output_tokens"], found["errors"]) == (32, 16, {})
    assert found["requests_per_s"] == pytest.approx(4 / found["duration_s"], rel=1e-3)
    assert found["output_tokens_per_s"] == pytest.approx(16 / found["duration_s"], rel=1e-3)
    for name in ("ttft_ms", "itl_ms"):
        assert 0 < found[name]["median"] <= found[name]["p99"]
    assert found["conditions"]["options"]["request_rate"] == "inf"
    assert "secret" not in json.dumps(found)
    models, *asked = server.seen
    assert models["path"] == "/v1/models"
    assert {one["headers"]["authorization"] for one in asked} == {"bearer secret"}
    assert [len(one["prompt"]) for one in asked[1:]] == [8, 8, 8, 8]
    assert all(one["stream"] and one["ignore_eos"] and one["model"] == "demo" for one in asked)


def test_serve_chat_at_a_rate(capsys: pytest.CaptureFixture[str], shell: Server) -> None:
    server, url = shell
    server.seen.clear()
    argv = ("serve", "--base-url", url, *TINY, "--endpoint", "chat", "--model", "other")
    found = bench(capsys, *argv, "--request-rate", "100", "--no-ignore-eos")
    assert (found["model"], found["requests"]) == ("other", 4)
    assert 4 <= found["output_tokens"] <= 16
    assert {one["path"] for one in server.seen} == {"/v1/chat/completions"}
    assert not any("ignore_eos" in one for one in server.seen)
    [message] = server.seen[-1]["messages"]
    assert (message["role"], len(message["content"].split())) == ("user", 8)


def test_serve_counts_errors_by_kind(
    capsys: pytest.CaptureFixture[str], shell: Server, tmp_path: Path
) -> None:
    lines = [{"prompt": "One"}, {"prompt": [7] * 500}, {"prompt": [10**6]}, {"prompt": "Two"}]
    path = write_lines(tmp_path / "x.jsonl", *lines)
    argv = ("serve", "--base-url", shell[1], "--dataset", path, "--output-len", "3")
    found = bench(capsys, *argv)
    assert (found["requests"], found["failed"], found["errors"]) == (2, 2, {"HTTP 400": 2})
    write_lines(path, lines[1])
    assert "answered none of 1 requests: {'HTTP 400': 1}" in fail(capsys, *argv)


def commands() -> list[Any]:
    """The commands of the page, those before a `quire bench` with it."""
    blocks = re.findall(r"^```sh\n(.*?)^```", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    return [
        pytest.param(block, id=words[2], marks=[pytest.mark.slow] * (words[2] == "startup"))
        for block in blocks
        if (words := shlex.split(block[block.index("quire bench") :]))
    ]


@pytest.mark.parametrize("block", commands())
def test_commands_of_the_page_run(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    shell: Server,
    block: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    # processes that are started find this quire from here, too
    monkeypatch.setenv("PYTHONPATH", str(Path(quire.__file__).parents[1]))
    for line in block.replace("\\\n", " ").splitlines():
        if not line.startswith("quire bench "):
            subprocess.run(line, shell=True, check=True)
            continue
        argv = shlex.split(line.replace("http://127.0.0.1:8000/v1", shell[1]))[2:]
        if argv[0] == "startup":
            argv.append("--enforce-eager")  # or it compiles every program there is
        found = bench(capsys, *argv)
        assert f"`{found['benchmark']}`" in DOCS.read_text()
        figures = found.keys() - {"benchmark", "model", "conditions"}
        missing = [name for name in figures if f"`{name}`" not in DOCS.read_text()]
        assert not missing
