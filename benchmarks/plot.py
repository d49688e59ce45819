"""Draws how many times faster than its peer Quire runs each workload, as an SVG without a library.

    python benchmarks/plot.py [--results FOLDER] [--output FILE]

FOLDER/*.jsonl holds the lines of workloads.py, where the last of a workload counts.
FOLDER/peers.json holds the peers': a list of such records, or an object from workload to figures
(alone, or as "workloads" beside an "engine"). Of several peers the fastest counts. Compared is
"ms_per_step" where both have it, else "median_s"; other fields are passed over.
"""

import argparse
import json
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
FIGURES = {"ms_per_step": "ms a step", "median_s": "s"}
"""What can be compared, the best first, and its unit."""

WIDTH, ROW, BAR, TOP, BOTTOM = 900, 44, 22, 64, 34
LABELS, BARS, TEXTS = 150, 360, 16
"""Widths of the names, of the longest bar, and of the space before the figures."""
INK, FAINT, QUIRE, SLOWER = "#6e7681", "#8b949e", "#3f83c8", "#b3762f"
"""Colours that can be read on white and on black."""


class Row(NamedTuple):
    """One workload."""

    workload: str
    figure: str
    """A key of FIGURES."""
    quire: float
    engine: str
    """The peer's name; empty where it has no figure."""
    peer: float | None

    @property
    def ratio(self) -> float | None:
        return None if self.peer is None else self.peer / self.quire

    @property
    def text(self) -> str:
        """The figures in words."""
        own = f"Quire {self.quire:g}"
        if self.ratio is None:
            return f"{own} {FIGURES[self.figure]}"
        return f"{self.ratio:.2f} ×  ({own}, {self.engine} {self.peer:g} {FIGURES[self.figure]})"


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Quire's records of workloads, files by name."""
    texts = [path.read_text() for path in sorted(folder.glob("*.jsonl"))]
    lines = [json.loads(line) for text in texts for line in text.splitlines() if line.strip()]
    return [line for line in lines if line.get("benchmark") == "workload"]


def read_peers(path: Path) -> list[dict[str, Any]]:
    """The peers' records; none where there is no file."""
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    if isinstance(found, list):
        return found
    workloads = found.get("workloads", found)
    engine = {"engine": found["engine"]} if isinstance(found.get("engine"), str) else {}
    named = ((name, each) for name, each in workloads.items() if isinstance(each, dict))
    return [{"workload": name, **engine, **each} for name, each in named]


def compare(records: Iterable[Mapping[str, Any]], peers: Iterable[Mapping[str, Any]]) -> list[Row]:
    """A row a workload, in the order in which they first come."""
    peers = list(peers)
    last = {record["workload"]: record for record in records}
    return [
        _row(record, [p for p in peers if p.get("workload") == name])
        for name, record in last.items()
    ]


def _row(record: Mapping[str, Any], peers: list[Mapping[str, Any]]) -> Row:
    own = [figure for figure in FIGURES if figure in record]
    for figure in own:
        if timed := [peer for peer in peers if figure in peer]:
            best = min(timed, key=lambda peer: peer[figure])
            name = str(best.get("engine", "peer"))
            return Row(record["workload"], figure, record[figure], name, best[figure])
    if not own:
        raise SystemExit(f"the record of {record['workload']!r} has none of {', '.join(FIGURES)}")
    return Row(record["workload"], own[0], record[own[0]], "", None)


def draw(rows: list[Row], about: str) -> str:
    """The chart as the text of an SVG file."""
    height = TOP + ROW * len(rows) + BOTTOM
    svg = ET.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {WIDTH} {height}",
            "font-family": "system-ui, sans-serif",
            "font-size": "13",
            "role": "img",
        },
    )
    ET.SubElement(svg, "title").text = "Quire beside its peer"
    _text(svg, 0, 20, "Time of the peer over Quire's: longer bars are better", size=16)
    _text(svg, 0, 42, about, fill=FAINT)
    scale = BARS / max([1.0, *(row.ratio for row in rows if row.ratio is not None)])
    for number, row in enumerate(rows):
        _draw_row(svg, TOP + ROW * number, row, scale)
    _draw_peer(svg, LABELS + scale, height - BOTTOM)
    ET.indent(svg)
    return ET.tostring(svg, encoding="unicode") + "\n"


def _draw_row(svg: ET.Element, top: float, row: Row, scale: float) -> None:
    middle = top + ROW / 2 + 4
    _text(svg, LABELS - 10, middle, row.workload, anchor="end")
    length = 0.0
    if row.ratio is not None:
        length = row.ratio * scale
        place = {"x": LABELS, "y": top + (ROW - BAR) / 2, "width": length, "height": BAR, "rx": 2}
        colour = QUIRE if row.ratio >= 1 else SLOWER
        ET.SubElement(svg, "rect", {**_numbers(place), "fill": colour})
    _text(svg, LABELS + max(length, scale) + TEXTS, middle, row.text)


def _draw_peer(svg: ET.Element, x: float, bottom: float) -> None:
    """The line at 1, where both are as fast."""
    ends = _numbers({"x1": x, "x2": x, "y1": TOP, "y2": bottom})
    ET.SubElement(svg, "line", {**ends, "stroke": FAINT, "stroke-dasharray": "4 3"})
    _text(svg, x, bottom + 18, "1 × (the peer)", fill=FAINT, anchor="middle")


def _text(
    svg: ET.Element,
    x: float,
    y: float,
    text: str,
    *,
    size: int = 13,
    fill: str = INK,
    anchor: str = "start",
) -> None:
    look = {"fill": fill, "font-size": str(size), "text-anchor": anchor}
    ET.SubElement(svg, "text", {**_numbers({"x": x, "y": y}), **look}).text = text


def _numbers(values: Mapping[str, float]) -> dict[str, str]:
    return {name: f"{round(value, 1):g}" for name, value in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    results = ROOT / "benchmarks" / "results"
    parser.add_argument("--results", type=Path, default=results, metavar="FOLDER")
    output = ROOT / "docs" / "benchmarks.svg"
    parser.add_argument("--output", type=Path, default=output, metavar="FILE")
    options = parser.parse_args()
    records = read_records(options.results)
    if not records:
        parser.error(
            f"{options.results} has no .jsonl files with records of workloads. Make one with "
            "python benchmarks/workloads.py --output FILE."
        )
    devices = sorted({str(record["device"]) for record in records if "device" in record})
    rows = compare(records, read_peers(options.results / "peers.json"))
    options.output.write_text(draw(rows, ", ".join(devices)), encoding="utf-8")
    print(options.output)


if __name__ == "__main__":
    main()
