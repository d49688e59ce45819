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
from PIL import Image

import quire
from quire import BeamSearchParams, Engine, SamplingParams

FIXTURES = Path(__file__).parent / "fixtures"
SNIPPETS = sorted((FIXTURES / "snippets").glob("*.py"))
ROOT = Path(__file__).resolve().parents[1]
SEEDS = ROOT.parent / "shared" / "seeds"
SQL = ROOT / "examples" / "sql_adapter"
DEMO = Path(quire.__file__).resolve().parent / "models" / "demo"
STAND_INS = {
    "llava-hf/llava-1.5-7b-hf": "vision/llava",
    "llava-hf/LLaVA-NeXT-Video-7B-hf": "vision/llava_next_video",
    "microsoft/Phi-3.5-vision-instruct": "vision/phi3_v",
    "Qwen/Qwen2-Audio-7B-Instruct": "audio/qwen2_audio",
    "Qwen/Qwen2-VL-2B-Instruct": "vision/qwen2_vl",
    "fixie-ai/ultravox-v0_5-llama-3_2-1b": "audio/ultravox",
}
"""Small models in `fixtures` for those that see and hear."""
SIZES = {r"\b32000\b": "189", r"\b1,3,336,336\b": "1,3,35,35", r"\b576\b": "25"}
"""LLaVA's token for features, the pixels that its tower sees and its features of a picture, and
those of the stand-in."""
SHOWN = """
token = llm._running.media.spec.kinds["image"].token
print("Features:", *(output.prompt_token_ids.count(token) for output in outputs))
"""
"""Behind a program with pictures: how many features its last prompts have."""

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


def photos(folder: Path) -> dict[str, str]:
    """Two pictures, by what stands for their paths in programs."""
    paths = {"<path_to_image>": (48, 32), "<path_to_other_image>": (24, 60)}
    for number, size in enumerate(paths.values()):
        Image.linear_gradient("L").resize(size).save(folder / f"{number}.jpg")
    return {name: str(folder / f"{number}.jpg") for number, name in enumerate(paths)}


def run_programs(folder: Path, programs: dict[str, str]) -> dict[str, tuple[str, str | None]]:
    """What each program prints and its error, all run by one process that finds the stand-ins."""
    opt_folder(cached(folder / "hub", "facebook/opt-125m"))
    for llama in ("Meta-Llama-3-8B-Instruct", "Llama-2-7b-hf"):
        shutil.copytree(DEMO, cached(folder / "hub", f"meta-llama/{llama}"))
    shutil.copytree(SQL, cached(folder / "hub", "yard1/llama-2-7b-sql-lora-test"))
    for repository, name in STAND_INS.items():
        shutil.copytree(FIXTURES / name, cached(folder / "hub", repository))
    template = str(ROOT / "examples" / "template_chatml.jinja")
    replaced = {r"\bvllm\b": "quire", "<path_to_template>": template, **SIZES, **photos(folder)}
    paths = {folder / f"{name}.py": text for name, text in programs.items()}
    for path, text in paths.items():
        for pattern, by in replaced.items():
            text = re.sub(pattern, by, text)
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


FEATURES = {
    "picture": "25 25",
    "pictures": "1226",
    "frames": "48",
    "older_picture": "25",
}
"""Of the pictures of each prompt that a program gives at last, for its stand-in."""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str | None]]:
    programs = {path.stem: path.read_text() for path in SNIPPETS}
    programs |= {name: programs[name] + SHOWN for name in FEATURES}
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
        ("picture", 3),
        ("pictures", 1),
        ("frames", 1),
        ("older_picture", 1),
    ],
)
def test_snippets(ran: dict[str, tuple[str, str | None]], name: str, prompts: int) -> None:
    assert {path.stem for path in SNIPPETS} == ran.keys()
    check(ran[name], prompts)


@pytest.mark.slow
@pytest.mark.parametrize("name", FEATURES)
def test_snippets_show_their_pictures(ran: dict[str, tuple[str, str | None]], name: str) -> None:
    assert ran[name][0].endswith(f"\nFeatures: {FEATURES[name]}\n")


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


def indented_blocks(text: str) -> list[str]:
    """The indented parts of a page, with what is between two of them left out."""
    blocks = re.findall(r"^((?:    .*\n|[ \t]*\n)+)", text, re.MULTILINE)
    return [textwrap.dedent(block) for block in blocks if block.strip()]


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
    program = "\n".join(indented_blocks(usage.read_text().split("Serving LoRA Adapters")[0]))
    assert "LoRARequest(" in program
    told = "print(len(outputs), outputs[0].lora_request.name)"
    printed, error = run_programs(tmp_path, {"adapter": f"{program}\n{told}"})["adapter"]
    assert error is None, error
    assert printed.endswith("2 sql_adapter\n")


OPENED = """
import base64, PIL.Image
from pathlib import Path
from vllm import LLM
from vllm.multimodal.image import ImagePixelData

def encode_image(path):
    return base64.b64encode(Path(path).read_bytes()).decode()
"""
"""What the documents leave to the reader."""
LEFT_OUT = {
    r"PIL\.Image\.open\(\.\.\.\)": 'PIL.Image.open("<path_to_image>")',
    r"\bimage = \.\.\.": 'image = PIL.Image.open("<path_to_image>")',
    r"\bvideo_frames = \.\.\.": 'video_frames = ["<path_to_image>"] * 4',
}


@pytest.mark.slow
@pytest.mark.skipif(not SEEDS.is_dir(), reason=f"the documents are not in {SEEDS}")
def test_the_documents_own_pictures(tmp_path: Path) -> None:
    (usage,), (older,) = SEEDS.glob("000_*"), SEEDS.glob("001_*")
    chapter = usage.read_text().split("Multimodal Inputs")[1].split("\nVideo\n-----")[0]
    *now, client = flattened_blocks(older.read_text().replace("|\n|\n", "||\n"))
    assert "openai" in client
    blocks = {
        **dict(zip(("llava", "phi", "qwen"), indented_blocks(chapter), strict=True)),
        "older": "\n".join(now),
    }
    programs: dict[str, str] = {}
    for name, text in blocks.items():
        for pattern, by in LEFT_OUT.items():
            text = re.sub(pattern, by, text)
        programs[name] = OPENED + text + SHOWN
    results = run_programs(tmp_path, programs)
    assert [error for _, error in results.values()] == [None] * 4
    last = {name: printed.splitlines()[-1] for name, (printed, _) in results.items()}
    assert last == {
        "llava": "Features: 25 25",
        "phi": "Features: 1514",
        "qwen": "Features: 48",
        "older": "Features: 25",
    }
