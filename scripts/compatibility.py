# SPDX-License-Identifier: Apache-2.0
"""Keep the results of ``scripts/versions``, and write them into docs/compatibility.md.

scripts/compatibility.py record RESULTS REPORT.xml "VERSION RUNNER TREE"
scripts/compatibility.py page RESULTS TREE
"""

from __future__ import annotations

import json
import platform
import sys
import xml.etree.ElementTree
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[1] / "docs" / "compatibility.md"
BEGIN = "<!-- scripts/versions writes from here -->\n"
END = "<!-- to here -->\n"
COUNTS = ("passed", "failed", "skipped")
HEAD = ("vLLM", "runner", *COUNTS, "Python", "torch", "transformers", "date")


def counted(report: Path) -> dict[str, Any]:
    """Return how many tests of a JUnit report passed, failed and were skipped."""
    counts: dict[str, Any] = dict.fromkeys(COUNTS, 0)
    failures = []
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        outcome = "passed"
        if case.find("failure") is not None or case.find("error") is not None:
            outcome = "failed"
            failures.append(f"{case.get('classname')}.{case.get('name')}")
        elif case.find("skipped") is not None:
            outcome = "skipped"
        counts[outcome] += 1
    return {**counts, "failures": failures}


def record(results: Path, report: Path, run: str) -> None:
    """Add one run: a line of JSON. Must run in the environment that was tested."""
    line = {
        "run": run,
        **counted(report),
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "transformers": metadata.version("transformers"),
        "date": date.today().isoformat(),
    }
    with results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def latest_rows(results: Path, tree: str) -> list[list[Any]]:
    """Return the latest run of each version and runner on a tree."""
    latest: dict[tuple[tuple[int, ...], str], list[Any]] = {}
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    for line in map(json.loads, lines):
        version, runner, ran = line["run"].split()
        if ran == tree:
            row = [version, runner, *(line[name.lower()] for name in HEAD[2:])]
            latest[tuple(map(int, version.split("."))), runner] = row
    return [latest[key] for key in sorted(latest)]


def write_page(rows: list[list[Any]]) -> None:
    """Put a table between the page's two marks.

    Raises: SystemExit when a mark is gone.
    """
    before, begin, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"compatibility: wanted the lines {BEGIN!r} and {END!r} in {PAGE}")
    table = "".join(
        f"| {' | '.join(map(str, row))} |\n"
        for row in (HEAD, ["---"] * len(HEAD), *rows)
    )
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Do one of the two; of a page, return 1 unless all it tells of passed."""
    match arguments:
        case ["record", results, report, run]:
            record(Path(results), Path(report), run)
        case ["page", results, tree]:
            rows = latest_rows(Path(results), tree)
            write_page(rows)
            return int(any(not row[2] or row[3] for row in rows))
        case _:
            sys.exit(__doc__)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
