"""Commands and clients written for vLLM's server run with `vllm` replaced by `quire`.

Servers are started by the commands themselves, on stand-ins for their models.
"""

import argparse
import base64
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.live_server import live_server
from tests.lora_folders import lora_folder
from tests.test_seeds import (
    DEMO,
    FIXTURES,
    ROOT,
    SEEDS,
    SIZES,
    STAND_INS,
    cached,
    flattened_blocks,
    opt_folder,
    photos,
)

SNIPPETS = FIXTURES / "snippets" / "server"
OPT = "facebook/opt-125m"
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
LLAMA_2 = "meta-llama/Llama-2-7b-hf"
LLAVA = "llava-hf/llava-1.5-7b-hf"
PLACEHOLDER, FEATURES = 189, 25
"""The token of a picture in the stand-in for LLaVA, and how many there are."""
ADAPTER = "sql-lora"
ADAPTER_FOLDER = "/path/to/sql-lora-adapter"
"""Of the documents."""
DOCUMENTS_ADDRESS = "http://localhost:8000"
RUN_QUIRE = "import sys; from quire.entrypoints.cli import main; sys.exit(main())"
CALL = """\
Function called: get_weather
Arguments: {"location": "San Francisco, CA", "unit": "fahrenheit"}
Result: Getting the weather for San Francisco, CA in fahrenheit...
"""

pytestmark = pytest.mark.slow


def snippet(name: str) -> str:
    return (SNIPPETS / name).read_text()


def words(text: str) -> list[str]:
    """The words of a command, up to a pipe, as a shell would split them."""
    text = re.sub(r"\bvllm\b", "quire", text.removeprefix("$ ")).replace("\\\n", " ")
    found = shlex.split(os.path.expandvars(text))
    return found[: found.index("|")] if "|" in found else found


def python_arguments(text: str) -> list[str]:
    """What Python is given for a command that starts a server."""
    match words(text):
        case ["quire", *arguments]:
            return ["-c", RUN_QUIRE, *arguments]
        case ["python", *arguments]:
            return arguments
        case other:
            raise AssertionError(other)


def curl(text: str, address: str) -> httpx.Response:
    """The answer to a request, made from the words of a `curl` command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("curl", choices=["curl"])
    parser.add_argument("url")
    parser.add_argument("-X", dest="method")
    parser.add_argument("-H", dest="headers", action="append", default=[])
    parser.add_argument("-d", dest="content")
    args = parser.parse_args(words(text))
    assert args.url.startswith(DOCUMENTS_ADDRESS)
    return httpx.request(
        args.method or ("GET" if args.content is None else "POST"),
        args.url.replace(DOCUMENTS_ADDRESS, address),
        headers=[tuple(header.split(": ", 1)) for header in args.headers],
        content=args.content,
        timeout=60,
    )


def run_client(text: str, address: str) -> str:
    """What a program with the `openai` package prints."""
    assert DOCUMENTS_ADDRESS in text
    done = subprocess.run(
        [sys.executable, "-c", text.replace(DOCUMENTS_ADDRESS, address)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Where servers find the stand-ins."""
    folder = tmp_path_factory.mktemp("hub")
    opt_folder(cached(folder / "hub", OPT))
    for repository in (LLAMA, LLAMA_2):
        shutil.copytree(DEMO, cached(folder / "hub", repository))
    shutil.copytree(FIXTURES / STAND_INS[LLAVA], cached(folder / "hub", LLAVA))
    return {"HF_HOME": str(folder), "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an adapter of OPT."""
    return lora_folder(tmp_path_factory.mktemp("adapter") / "sql", FIXTURES / "opt_download")


@pytest.fixture(scope="module")
def opt_server(environment: dict[str, str], adapter: Path) -> Iterator[str]:
    """The address of OPT with the adapter of the documents, whose clients may load others."""
    command = python_arguments(snippet("serve_with_template.sh"))
    adapters = ("--enable-lora", "--lora-modules", f"{ADAPTER}={adapter}")
    allowed = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
    with live_server(
        "--enforce-eager",
        *adapters,
        command=command,
        environment=environment | allowed,
        cwd=ROOT,
    ) as address:
        yield address


@pytest.fixture(scope="module")
def llama_server(environment: dict[str, str]) -> Iterator[str]:
    """The address of the demo model under Llama's name, whose key is that of the documents."""
    command = python_arguments(snippet("serve_tools.sh"))
    key = {"VLLM_API_KEY": "dummy"}
    with live_server("--enforce-eager", command=command, environment=environment | key) as address:
        yield address


@pytest.fixture(scope="module")
def llava_server(environment: dict[str, str]) -> Iterator[str]:
    """The address of LLaVA's stand-in, whose sizes the command gives in place of LLaVA's."""
    text = snippet("serve_pictures.sh")
    for own, stand_in in SIZES.items():
        text = re.sub(own, stand_in, text)
    command, folder = python_arguments(text), ROOT / "examples"
    with live_server(
        "--enforce-eager", command=command, environment=environment, cwd=folder
    ) as address:
        yield address


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a picture that needs no network."""
    path = Path(photos(tmp_path_factory.mktemp("photos"))["<path_to_image>"])
    return f"data:image/jpeg;base64,{base64.b64encode(path.read_bytes()).decode()}"


def test_models(opt_server: str, adapter: Path) -> None:
    answer = curl(snippet("models.sh"), opt_server).json()
    assert answer["object"] == "list"
    assert [(card["id"], card["root"], card["parent"]) for card in answer["data"]] == [
        (OPT, OPT, None),
        (ADAPTER, str(adapter), OPT),
    ]
    for card in answer["data"]:
        assert card["object"] == "model"
        assert card["created"] > 0
        assert len(card["permission"]) == 1


def test_completion(opt_server: str) -> None:
    texts: dict[str, str] = {}
    for name, model in (("completion.sh", OPT), ("adapter_completion.sh", ADAPTER)):
        response = curl(snippet(name), opt_server)
        assert response.status_code == 200, response.text
        answer = response.json()
        assert answer["object"] == "text_completion"
        assert answer["model"] == model
        assert answer["usage"]["completion_tokens"] == 7
        assert answer["choices"][0]["finish_reason"] == "length"
        texts[model] = answer["choices"][0]["text"]
    assert texts[OPT] != texts[ADAPTER]


def test_chat(opt_server: str) -> None:
    response = curl(snippet("chat.sh"), opt_server)
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["role"] == "assistant"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("completion.py", "Completion result: Completion(id='cmpl-"),
        ("chat.py", "Chat response: ChatCompletion(id='chatcmpl-"),
    ],
)
def test_openai_clients(opt_server: str, name: str, said: str) -> None:
    assert run_client(snippet(name), opt_server).startswith(said)


def test_tools(llama_server: str) -> None:
    assert run_client(snippet("tools.py"), llama_server) == CALL


def test_pictures(llava_server: str, photo: str) -> None:
    parts = [{"type": "image_url", "image_url": {"url": photo}}]
    body = {"messages": [{"role": "user", "content": parts}]}
    tokens = httpx.post(f"{llava_server}/tokenize", json=body).json()["tokens"]
    assert tokens.count(PLACEHOLDER) == FEATURES
    out = run_client(with_photo(snippet("picture.py"), photo), llava_server)
    assert out.startswith("Chat response: ChatCompletion(id='chatcmpl-")
    (prompt_tokens,) = re.findall(r"\bprompt_tokens=(\d+)", out)
    assert int(prompt_tokens) > len(tokens)


def with_photo(text: str, photo: str) -> str:
    """A program with `photo` in place of its picture."""
    text, replaced = re.subn(r'https://[^"]+\.jpg', photo, text)
    assert replaced == 1
    return text


def test_the_key_of_the_environment(llama_server: str) -> None:
    assert curl(snippet("models.sh"), llama_server).status_code == 401


def test_a_model_that_does_not_exist_is_told(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, *python_arguments(snippet("serve.sh")), "--port", "0"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    told = done.stderr.splitlines()[-1]
    assert told.startswith("quire: error: ")
    assert "facebook/opt-125" in told


def test_adapters_are_served(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    command = python_arguments(snippet("serve_adapters.sh"))
    name, _, place = command[-1].partition("=")
    lora_folder(Path(place), DEMO)
    with live_server("--enforce-eager", command=command, environment=environment) as address:
        assert tmp_path in Path(place).parents
        cards = curl(snippet("models.sh"), address).json()["data"]
        assert [card["id"] for card in cards] == [LLAMA_2, name]
        response = curl(snippet("adapter_completion.sh"), address)
        assert response.status_code == 200, response.text
        assert response.json()["model"] == name


def test_adapters_come_and_go(opt_server: str, adapter: Path) -> None:
    load = snippet("load_adapter.sh").replace(ADAPTER_FOLDER, str(adapter))
    for command, done in ((load, "added"), (snippet("unload_adapter.sh"), "removed")):
        response = curl(command, opt_server)
        assert response.status_code == 200, response.text
        assert response.text == f"Success: LoRA adapter 'sql_adapter' {done} successfully."


def indented_blocks(text: str) -> list[str]:
    """The blocks of a reStructuredText page."""
    found = re.findall(r"^((?:    .*\n|[ \t]*\n)+)", text, re.MULTILINE)
    return [block for each in found if (block := textwrap.dedent(each).strip("\n"))]


def fenced_blocks(text: str) -> list[str]:
    """The blocks of a Markdown page."""
    return re.findall(r"^```\w+\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.mark.skipif(not SEEDS.is_dir(), reason=f"the documents are not in {SEEDS}")
def test_the_documents_own_snippets(opt_server: str, llama_server: str, adapter: Path) -> None:
    (usage,), (intro,), (models,) = (SEEDS.glob(f"00{number}_*") for number in (0, 2, 3))
    blocks = [*indented_blocks(usage.read_text()), *fenced_blocks(intro.read_text())]
    commands = [block for block in blocks if block.removeprefix("$ ").startswith("curl ")]
    clients = [block for block in blocks if "from openai import" in block]
    servers = [block for block in blocks if re.match("vllm serve|python -m vllm", block)]
    assert (len(commands), len(clients), len(servers)) == (7, 3, 4)
    for command in commands:
        request = command.split("\n\n")[0]  # what it answers may stand below
        response = curl(request.replace(ADAPTER_FOLDER, str(adapter)), opt_server)
        assert response.status_code == 200, response.text
    for client in clients:
        out = run_client(client, llama_server if "tools" in client else opt_server)
        assert out == CALL or " result: " in out or " response: " in out
    started = [python_arguments(server) for server in servers]
    own = ("serve_adapters.sh", "serve_tools.sh", "serve.sh", "serve_with_template.sh")
    assert started == [python_arguments(snippet(name)) for name in own]
    for example in set(re.findall(r"examples/\w+client\.py", models.read_text())):
        assert (ROOT / example).exists()


@pytest.mark.skipif(not SEEDS.is_dir(), reason=f"the documents are not in {SEEDS}")
def test_the_documents_own_pictures(llava_server: str, photo: str) -> None:
    (older,) = SEEDS.glob("001_*")
    page = older.read_text()
    *_, client = flattened_blocks(page.replace("|\n|\n", "||\n"))
    assert run_client(with_photo(client, photo), llava_server).startswith("Chat response: ")
    (server,) = re.findall(r"^python -m vllm.*?\.jinja$", page, re.DOTALL | re.MULTILINE)
    command = "\n".join(line for line in server.splitlines() if line != "|")
    assert python_arguments(command) == python_arguments(snippet("serve_pictures.sh"))
