"""The chart of workloads, drawn from files of results."""

import importlib.util
import json
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest


def load() -> Any:
    """benchmarks/plot.py, without its folder on the path."""
    path = Path(__file__).parents[2] / "benchmarks" / "plot.py"
    spec = importlib.util.spec_from_file_location("benchmarks_plot", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


plot = load()

SVG = "{http://www.w3.org/2000/svg}"
DECODE = {"benchmark": "workload", "workload": "b1_decode", "median_s": 2.0, "ms_per_step": 4.25}
PREFILL = {"benchmark": "workload", "workload": "prefill<8k>", "median_s": 6.5, "commit": "abc"}
MIX = {"benchmark": "workload", "workload": "chat_mix", "median_s": 9.0, "device": "H200"}
PEERS = {
    "b1_decode": {"median_s": 3.0, "ms_per_step": 5.1},
    "prefill<8k>": {"median_s": 5.2, "notes": "warm"},
}


def write(folder: Path, peers: object, *records: dict[str, Any]) -> None:
    (folder / "x.jsonl").write_text("".join(json.dumps(record) + "\n\n" for record in records))
    (folder / "peers.json").write_text(json.dumps(peers))


def drawn(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ET.Element:
    output = folder / "chart.svg"
    argv = ["plot.py", "--results", str(folder), "--output", str(output)]
    monkeypatch.setattr(sys, "argv", argv)
    plot.main()
    return ET.fromstring(output.read_text())


def texts(svg: ET.Element) -> list[str]:
    return [element.text or "" for element in svg.iter(f"{SVG}text")]


def lengths(svg: ET.Element) -> list[float]:
    return [float(element.attrib["width"]) for element in svg.iter(f"{SVG}rect")]


def test_every_workload_is_there_with_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"engine": "vLLM", "workloads": PEERS}, DECODE, PREFILL, MIX)
    svg = drawn(tmp_path, monkeypatch)
    found = texts(svg)
    assert {"b1_decode", "prefill<8k>", "chat_mix", "H200"} <= set(found)
    assert "1.20 ×  (Quire 4.25, vLLM 5.1 ms a step)" in found
    assert "0.80 ×  (Quire 6.5, vLLM 5.2 s)" in found
    assert "Quire 9 s" in found
    decode, prefill = lengths(svg)
    assert decode / prefill == pytest.approx(1.2 / 0.8, rel=1e-2)


def test_nothing_leaves_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peers = {"b1_decode": {"ms_per_step": 400.0}, "prefill<8k>": {"median_s": 0.01}}
    write(tmp_path, peers, DECODE, PREFILL, MIX)
    svg = drawn(tmp_path, monkeypatch)
    _, _, width, height = map(float, svg.attrib["viewBox"].split())
    for element in svg.iter():
        place = {name: float(element.attrib.get(name, 0)) for name in ("x", "y", "width", "height")}
        assert place["x"] + place["width"] <= width
        assert place["y"] + place["height"] <= height
        if element.attrib.get("text-anchor") == "start":
            assert place["x"] + 7 * len(element.text or "") <= width


def test_the_last_record_counts_and_the_fastest_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peers = [
        {"engine": name, "workload": "chat_mix", "median_s": seconds}
        for name, seconds in (("slow", 20.0), ("fast", 10.0), ("slower", 30.0))
    ]
    other = {"benchmark": "steps", "batch": "1x32"}
    write(tmp_path, peers, {**MIX, "median_s": 50.0}, other, {**MIX, "median_s": 8.0})
    svg = drawn(tmp_path, monkeypatch)
    assert "1.25 ×  (Quire 8, fast 10 s)" in texts(svg)
    assert len(lengths(svg)) == 1


def test_without_records_it_says_how_to_make_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        drawn(tmp_path, monkeypatch)
    assert "python benchmarks/workloads.py --output FILE" in capsys.readouterr().err
