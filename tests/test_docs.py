"""The pages in docs/ are complete, their links lead somewhere and their programs run."""

import dataclasses
import re
from pathlib import Path

import pytest

from quire import BeamSearchParams, EngineOptions, SamplingParams, StructuredOutputsParams
from quire.models.registry import ARCHITECTURES

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


def test_every_engine_option_is_there_with_its_default() -> None:
    fields = {field.name: field.default for field in dataclasses.fields(EngineOptions)}
    documented = rows("engine_arguments.md")
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
