"""The pages in docs/ are complete, their links lead somewhere and their programs run."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants
import pytest

from quire import BeamSearchParams, EngineOptions, SamplingParams, StructuredOutputsParams
from quire.entrypoints.openai.app import create_app
from quire.entrypoints.openai.metrics import COUNTERS, GAUGES, HISTOGRAMS
from quire.entrypoints.openai.options import ServerOptions
from quire.entrypoints.parsers import REASONING_PARSERS, TOOL_PARSERS
from quire.models.registry import ARCHITECTURES
from tests.test_seeds import FIXTURES, STAND_INS, cached

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def programs(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def rows(page: str) -> dict[str, list[str]]:
    """The rows of all tables of a page, by the code in their first column."""
    lines = re.findall(r"^\| `(\w+)` \|(.*)\|$", (ROOT / "docs" / page).read_text(), re.MULTILINE)
    assert len(lines) == len({first for first, _ in lines}), "a row is there twice"
    return {first: [cell.strip() for cell in rest.split(" | ")] for first, rest in lines}


@pytest.fixture
def downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small models under the names of those that pages load, for prompts as long."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for repository, stand_in in STAND_INS.items():
        folder = cached(tmp_path, repository)
        shutil.copytree(FIXTURES / stand_in, folder)
        config = json.loads((folder / "config.json").read_text())
        config["max_position_embeddings"] = 8192
        (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.usefixtures("downloaded")
@pytest.mark.parametrize("page", [page for page in PAGES if programs(page)], ids=name)
def test_programs_run(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, object] = {}
    for program in programs(page):
        exec(program, namespace)
    assert capsys.readouterr().out
    if "engine" in namespace:
        namespace["engine"].close()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!\w+://)([^)#]+)", page.read_text())
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize(
    ("page", "options"), [("engine_arguments.md", EngineOptions), ("server.md", ServerOptions)]
)
def test_every_option_is_there_with_its_default(page: str, options: type[Any]) -> None:
    fields = {field.name: field.default for field in dataclasses.fields(options)}
    documented = rows(page)
    assert documented.keys() == fields.keys()
    written = {option: cells[0] for option, cells in documented.items()}
    assert written == {
        option: f"`{default!r}`".replace("'", '"') for option, default in fields.items()
    }


def test_every_sampling_parameter_is_there_with_its_default() -> None:
    text = (ROOT / "docs" / "sampling_parameters.md").read_text()
    sampling, rest = text.split("## Order and randomness")
    forms, beams = rest.split("## Beam search")
    named = re.findall(r"^\| `(\w+)` \|", forms, re.MULTILINE)
    assert set(named) == {field.name for field in dataclasses.fields(StructuredOutputsParams)}
    for cls, part in ((SamplingParams, sampling), (BeamSearchParams, beams)):
        written = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", part, re.MULTILINE))
        assert written == {field.name: shown(field) for field in dataclasses.fields(cls)}


def shown(field: "dataclasses.Field[object]") -> str:
    if field.default is dataclasses.MISSING:
        return "required"
    default = getattr(field.default, "name", None) or repr(field.default)
    return f"`{default}`"


def test_every_architecture_is_there() -> None:
    assert rows("supported_models.md").keys() == ARCHITECTURES.keys()


def server_part(title: str) -> str:
    """The text of a section of the server's page."""
    return (ROOT / "docs" / "server.md").read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_every_route_of_the_server_is_there() -> None:
    found = set(re.findall(r"`(?:GET|POST) (/[^`]*)`", server_part("Routes")))
    assert {path.replace("MODEL", "{model}") for path in found} == routes()


def routes() -> set[str]:
    """The paths of an application that serves nothing."""
    service: Any = SimpleNamespace(options=ServerOptions(), metrics=None, engine=None)
    app = create_app(service)
    paths = {getattr(route, "path_format", "") for route in app.routes} - {"", "/redoc"}
    own = {path for path in paths if not path.startswith("/docs/")}
    return own | app.openapi()["paths"].keys()  # which has those of included routers


def test_every_parser_and_metric_is_there() -> None:
    tools = server_part("Tools")
    assert not [name for name in (*TOOL_PARSERS, *REASONING_PARSERS) if f"`{name}`" not in tools]
    counters = {f"{name}_total" for name in (*COUNTERS, "admission_rejections", "request_success")}
    known = {*GAUGES, *HISTOGRAMS, *counters, "cache_config_info"}
    named = set(re.findall(r"`(\w+)`", server_part("Metrics"))) - {"finished_reason"}
    assert named == known
