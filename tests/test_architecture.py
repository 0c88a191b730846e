# SPDX-License-Identifier: Apache-2.0
"""The walk in docs/architecture.md leads through rooms that are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.places import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (\d+) \| (.+?) \|", PAGE, re.MULTILINE)


def names_in(file: Path) -> set[str]:
    """Functions, classes and methods of a file, these as Class.method."""
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {
                f"{node.name}.{inner.name}"
                for inner in node.body
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef)
            }
    return found


def rooms(row: str) -> dict[Path, set[str]]:
    """Return the files of a row, with the names that it gives of each."""
    found: dict[Path, set[str]] = {}
    file = ROOT
    for path, name in re.findall(r"`(?:([\w/]+\.py)::)?([\w.]+)`", row):
        if path:
            below = ROOT if path.startswith("kernels/") else ROOT / "vllm_sauce"
            file = below / path
        found.setdefault(file, set()).add(name)
    return found


def test_the_walk_is_at_most_nine_rooms_each_entered_once() -> None:
    """Where it forks, by runner or for the client's side, the fork is one room."""
    assert [int(number) for number, _ in ROWS] == list(range(1, len(ROWS) + 1))
    assert len(ROWS) <= 9
    entered = [file for _, row in ROWS for file in rooms(row)]
    assert len(entered) == len(set(entered))


def test_every_room_has_what_the_page_says() -> None:
    for _, row in ROWS:
        for file, names in rooms(row).items():
            have = names_in(file)
            for name in names:
                methods = {one for one in have if one.endswith(f".{name}")}
                assert name in have or methods, f"{file.name} has no {name}"
