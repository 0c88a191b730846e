# SPDX-License-Identifier: Apache-2.0
"""The pages name what is there: errors, files, other pages."""

import inspect
import re
from pathlib import Path

import pytest

from tests.places import ROOT
from vllm_sauce import errors

DOCS = ROOT / "docs"
OTHERS = ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")
PAGES = sorted([*DOCS.rglob("*.md"), *(ROOT / name for name in OTHERS)])
_LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)(?:#([^)\s]+))?\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def anchor(heading: str) -> str:
    """Return a heading's anchor, as GitHub makes it."""
    kept = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return kept.replace(" ", "-")


def test_the_page_of_errors_names_each_in_the_order_of_the_code() -> None:
    told = re.findall(r"^\| `(\w+Error)` \|", (DOCS / "errors.md").read_text(), re.M)
    raised = [
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, errors.SauceError)
    ]
    assert told == raised[1:]


def test_the_index_names_each_page() -> None:
    text = (DOCS / "index.md").read_text()
    named = {target for target, _ in _LINK.findall(text)}
    there = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    assert named == there - {"index.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target, place in _LINK.findall(page.read_text()):
        found = page.parent / target
        assert found.exists(), f"{page.name} links to {target}"
        if place:
            headings = _HEADING.findall(found.read_text())
            assert place in map(anchor, headings), f"{page.name}: no {target}#{place}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130
