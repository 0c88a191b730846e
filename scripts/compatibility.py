# SPDX-License-Identifier: Apache-2.0
"""Keep the results of ``scripts/versions``, and write them into docs/compatibility.md.

scripts/compatibility.py record RESULTS "VERSION RUNNER TREE" REPORT.xml...
scripts/compatibility.py page RESULTS TREE
"""

from __future__ import annotations

import itertools
import json
import platform
import sys
import xml.etree.ElementTree
from collections.abc import Iterable, Sequence
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[1] / "docs" / "compatibility.md"
BEGIN = "<!-- scripts/versions writes from here -->\n"
END = "<!-- to here -->\n"
FEATURES_BEGIN = "<!-- features from here -->\n"
FEATURES_END = "<!-- features to here -->\n"
COUNTS = ("passed", "failed", "skipped")
HEAD = ("vLLM", "runner", *COUNTS, "Python", "torch", "transformers", "date")


def counted(reports: Sequence[Path]) -> dict[str, Any]:
    """Return how many tests passed, failed and were skipped, by feature, too."""
    counts: dict[str, Any] = dict.fromkeys(COUNTS, 0)
    failures = []
    features: dict[str, dict[str, int]] = {}
    trees = map(xml.etree.ElementTree.parse, reports)
    for case in itertools.chain.from_iterable(t.iter("testcase") for t in trees):
        outcome = "passed"
        if case.find("failure") is not None or case.find("error") is not None:
            outcome = "failed"
            failures.append(f"{case.get('classname')}.{case.get('name')}")
        elif case.find("skipped") is not None:
            outcome = "skipped"
        counts[outcome] += 1
        for told in case.iter("property"):
            if told.get("name") == "feature":
                name = str(told.get("value"))
                features.setdefault(name, dict.fromkeys(COUNTS, 0))[outcome] += 1
    return {**counts, "failures": failures, "features": features}


def record(results: Path, reports: Sequence[Path], run: str) -> None:
    """Add one run: a line of JSON. Must run in the environment that was tested."""
    line = {
        "run": run,
        **counted(reports),
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "transformers": metadata.version("transformers"),
        "date": date.today().isoformat(),
    }
    with results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def latest_runs(results: Path, tree: str) -> list[dict[str, Any]]:
    """Return the latest run of each version and runner on a tree."""
    latest: dict[tuple[tuple[int, ...], str], dict[str, Any]] = {}
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    for line in map(json.loads, lines):
        version, runner, ran = line["run"].split()
        if ran == tree:
            latest[tuple(map(int, version.split("."))), runner] = line
    return [latest[key] for key in sorted(latest)]


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table in Markdown."""
    lines = (head, ["---"] * len(head), *rows)
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def runs_table(runs: list[dict[str, Any]]) -> str:
    """Return what ran, a row a version and runner."""
    return table(
        HEAD,
        (
            [*run["run"].split()[:2], *(run[n.lower()] for n in HEAD[2:])]
            for run in runs
        ),
    )


def features_table(runs: list[dict[str, Any]]) -> str:
    """Return each feature's tests, a column a version and runner."""
    names = dict.fromkeys(name for run in runs for name in run["features"])
    return table(
        ("feature", *(" ".join(run["run"].split()[:2]) for run in runs)),
        ([name, *(_cell(run["features"].get(name)) for run in runs)] for name in names),
    )


def _cell(counts: dict[str, int] | None) -> str:
    if counts is None or not counts["passed"] + counts["failed"]:
        return "-"  # no test here, or it says that this vLLM has no such thing
    failed = f", **{counts['failed']} failed**" if counts["failed"] else ""
    return f"{counts['passed']} passed{failed}"


def write_between(begin: str, end: str, text: str) -> None:
    """Put a table between two marks of the page.

    Raises: SystemExit when a mark is gone.
    """
    before, found, rest = PAGE.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        sys.exit(f"compatibility: wanted the lines {begin!r} and {end!r} in {PAGE}")
    page = f"{before}{begin}\n{text}\n{end}{after}"
    PAGE.write_text(page, encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Do one of the two; of a page, return 1 unless all it tells of passed."""
    match arguments:
        case ["record", results, run, *reports]:
            record(Path(results), list(map(Path, reports)), run)
        case ["page", results, tree]:
            runs = latest_runs(Path(results), tree)
            write_between(BEGIN, END, runs_table(runs))
            write_between(FEATURES_BEGIN, FEATURES_END, features_table(runs))
            return int(any(not run["passed"] or run["failed"] for run in runs))
        case _:
            sys.exit(__doc__)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
