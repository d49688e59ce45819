"""The commands of the README, and what CI takes from there."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
CI = (ROOT / ".ci" / "run").read_text()


def commands() -> list[str]:
    """The lines that a reader is to run."""
    return re.findall(r"^(python3 -m venv .*)$", README, re.MULTILINE)


def test_there_are_two_commands_that_start_from_nothing() -> None:
    generate, test = commands()
    assert "pip install -q . " in generate
    assert ".venv/bin/quire generate " in generate
    assert "pip install -q '.[test]' " in test
    assert ".venv/bin/python -m pytest" in test


def test_ci_runs_the_test_command_of_the_readme() -> None:
    (line,) = re.findall(r"^test_command=\$\((.*)\)$", CI, re.MULTILINE)
    found = subprocess.run(line, shell=True, cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == commands()[1]


def test_a_missing_python312_fails(tmp_path: Path) -> None:
    function = CI[CI.index("find_python312() {") : CI.index("\n}\n") + 2]
    script = f"set -euo pipefail\n{function}\nfound=$(find_python312)\necho went on"
    done = subprocess.run(
        ["/bin/bash", "-c", script],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "went on" not in done.stdout
    assert "no working python3.12" in done.stderr
