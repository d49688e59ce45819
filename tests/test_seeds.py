"""Programs written for vLLM run with `vllm` replaced by `quire`, on stand-ins for their models."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import quire
from quire import BeamSearchParams, Engine, SamplingParams

FIXTURES = Path(__file__).parent / "fixtures"
SNIPPETS = sorted((FIXTURES / "snippets").glob("*.py"))
ROOT = Path(__file__).resolve().parents[1]
SEEDS = ROOT.parent / "shared" / "seeds"
SQL = ROOT / "examples" / "sql_adapter"
DEMO = Path(quire.__file__).resolve().parent / "models" / "demo"

RUN_EACH = """
import contextlib, io, json, sys, traceback
results = {}
for path in sys.argv[2:]:
    out, error = io.StringIO(), None
    try:
        with contextlib.redirect_stdout(out):
            exec(compile(open(path).read(), path, "exec"), {"__name__": "__main__"})
    except BaseException:
        error = traceback.format_exc()
    results[path] = out.getvalue(), error
json.dump(results, open(sys.argv[1], "w"))
"""


def opt_folder(folder: Path) -> Path:
    """facebook/opt-125m in small: config, pytorch_model.bin and the two files of its tokenizer."""
    shutil.copytree(FIXTURES / "opt_download", folder)
    shutil.copytree(FIXTURES / "tokenizers" / "opt", folder, dirs_exist_ok=True)
    (folder / "expected.json").unlink()
    return folder


def cached(hub: Path, repository: str) -> Path:
    """The folder to fill so that `repository` counts as downloaded."""
    repo = hub / f"models--{repository.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    (repo / "snapshots").mkdir()
    return repo / "snapshots" / ("0" * 40)


def run_programs(folder: Path, programs: dict[str, str]) -> dict[str, tuple[str, str | None]]:
    """What each program prints and its error, all run by one process that finds the stand-ins."""
    opt_folder(cached(folder / "hub", "facebook/opt-125m"))
    for llama in ("Meta-Llama-3-8B-Instruct", "Llama-2-7b-hf"):
        shutil.copytree(DEMO, cached(folder / "hub", f"meta-llama/{llama}"))
    shutil.copytree(SQL, cached(folder / "hub", "yard1/llama-2-7b-sql-lora-test"))
    template = str(ROOT / "examples" / "template_chatml.jinja")
    paths = {folder / f"{name}.py": text for name, text in programs.items()}
    for path, text in paths.items():
        text = re.sub(r"\bvllm\b", "quire", text).replace("<path_to_template>", template)
        path.write_text(text)
    results = folder / "results.json"
    subprocess.run(
        [sys.executable, "-c", RUN_EACH, results, *paths],
        env=os.environ | {"HF_HOME": str(folder), "HF_HUB_OFFLINE": "1"},
        check=True,
        timeout=300,
    )
    return {
        Path(path).stem: tuple(result) for path, result in json.loads(results.read_text()).items()
    }


def check(result: tuple[str, str | None], prompts: int) -> None:
    printed, error = result
    assert error is None, error
    assert len(re.findall(r"^Prompt: .*, Generated text: .*$", printed, re.MULTILINE)) == prompts


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str | None]]:
    programs = {path.stem: path.read_text() for path in SNIPPETS}
    return run_programs(tmp_path_factory.mktemp("snippets"), programs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "prompts"),
    [
        ("offline_batch", 4),
        ("generate", 1),
        ("greedy", 1),
        ("beam_search", 1),
        ("chat", 1),
        ("adapter", 2),
    ],
)
def test_snippets(ran: dict[str, tuple[str, str | None]], name: str, prompts: int) -> None:
    assert {path.stem for path in SNIPPETS} == ran.keys()
    check(ran[name], prompts)


@pytest.mark.slow
def test_chat_snippet_shows_its_template(ran: dict[str, tuple[str, str | None]]) -> None:
    template = (ROOT / "examples" / "template_chatml.jinja").read_text()
    assert f"Loaded chat template: {template}" in ran["chat"][0]


@pytest.fixture(scope="module")
def opt(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = opt_folder(tmp_path_factory.mktemp("opt") / "opt")
    with Engine(folder, dtype="float32", enforce_eager=True) as engine:
        yield engine


@pytest.fixture(scope="module")
def expected() -> dict[str, list[dict[str, Any]]]:
    return json.loads((FIXTURES / "opt_download" / "expected.json").read_text())


def test_opt_gives_the_reference_text(
    opt: Engine, expected: dict[str, list[dict[str, Any]]]
) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=16)
    outputs = opt.generate([one["prompt"] for one in expected["greedy"]], greedy)
    assert [list(one.outputs[0].token_ids) for one in outputs] == [
        one["token_ids"] for one in expected["greedy"]
    ]
    assert [one.outputs[0].text for one in outputs] == [one["text"] for one in expected["greedy"]]


def test_opt_gives_the_reference_beams(
    opt: Engine, expected: dict[str, list[dict[str, Any]]]
) -> None:
    beams = BeamSearchParams(beam_width=5, max_tokens=50)
    (output,) = opt.generate(expected["beams"][0]["prompt"], beams)
    assert [one.text for one in output.outputs] == [one["text"] for one in expected["beams"]]


def markdown_blocks(text: str) -> list[str]:
    """The Python blocks of a Markdown page that do not talk to a server."""
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return [block for block in blocks if "openai" not in block]


def flattened_blocks(text: str) -> list[str]:
    """The Python blocks of a reStructuredText page that lost its indentation.

    Between two lines of the source stands one `||`, for an empty line two. A block goes on as long
    as its paragraphs are Python.
    """
    lines = text.split(".. code-block:: python")
    return ["\n".join(leading_code(paragraphs(part))) for part in lines[1:]]


def paragraphs(text: str) -> list[list[str]]:
    found: list[list[str]] = [[]]
    bars = 0
    for line in text.splitlines():
        if set(line) <= {"|"}:
            bars += line == "||"
        else:
            if bars > 1:
                found.append([])
            found[-1].append(line)
            bars = 0
    return [lines for lines in found if lines]


def leading_code(parts: list[list[str]]) -> list[str]:
    code: list[str] = []
    for part in parts:
        text = indented(part)
        try:
            ast.parse(text)
        except SyntaxError:
            break
        code.append(text)
    return code


def indented(lines: list[str]) -> str:
    """Everything after a line that opens a block belongs to it."""
    done, depth = [], 0
    for line in lines:
        done.append("    " * depth + line)
        depth += line.endswith(":") and line.startswith("for ")
    return "\n".join(done)


@pytest.mark.slow
@pytest.mark.skipif(not SEEDS.is_dir(), reason=f"the documents are not in {SEEDS}")
def test_the_documents_own_snippets(tmp_path: Path) -> None:
    (intro,), (models,) = SEEDS.glob("002_*"), SEEDS.glob("003_*")
    blocks = {
        "intro": markdown_blocks(intro.read_text()),
        "models": flattened_blocks(models.read_text()),
    }
    assert {name: len(texts) for name, texts in blocks.items()} == {"intro": 4, "models": 5}
    imports = "from vllm import LLM, BeamSearchParams, SamplingParams"
    programs = {name: "\n\n".join([imports, *texts]) for name, texts in blocks.items()}
    results = run_programs(tmp_path, programs)
    check(results["intro"], 4)
    check(results["models"], 4)
    assert "Loaded chat template:" in results["models"][0]


@pytest.mark.slow
@pytest.mark.skipif(not SEEDS.is_dir(), reason=f"the documents are not in {SEEDS}")
def test_the_documents_own_adapter(tmp_path: Path) -> None:
    (usage,) = SEEDS.glob("000_*")
    chapter = usage.read_text().split("Serving LoRA Adapters")[0]
    blocks = re.findall(r"^((?:    .*\n|[ \t]*\n)+)", chapter, re.MULTILINE)
    program = "\n".join(textwrap.dedent(block) for block in blocks)
    assert "LoRARequest(" in program
    told = "print(len(outputs), outputs[0].lora_request.name)"
    printed, error = run_programs(tmp_path, {"adapter": f"{program}\n{told}"})["adapter"]
    assert error is None, error
    assert printed.endswith("2 sql_adapter\n")
