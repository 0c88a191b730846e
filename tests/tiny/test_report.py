# SPDX-License-Identifier: Apache-2.0
"""Tables of scores, from scores known by heart."""

import pytest
from rich.console import Console

from tiny.report import (
    good_concepts,
    markdown,
    rows_of,
    table,
    with_results,
)
from vllm_sauce.concepts import Catalogue, Concept, SiteEdit
from vllm_sauce.errors import ConfigError


def build_concept(name: str, domain: str, *shares: float) -> Concept:
    scores = dict(zip(("UAg", "UAd", "IRA", "CRA"), shares, strict=True))
    edits = {"vision": SiteEdit.uniform([1, 2])}
    return Concept(name=name, domain=domain, edits=edits, scores=scores)


CATALOGUE = Catalogue(
    [
        build_concept("dog", "objects", 0.9, 0.9, 0.9, 0.3),
        build_concept("cat", "objects", 1, 1, 1, 1),
        build_concept("red", "colours", 0.85, 0.9, 0.9, 0.9),
    ]
)


def test_means_are_of_concepts_not_of_domains():
    rows = rows_of(CATALOGUE)
    assert [(row.domain, row.name) for row in rows] == [
        ("colours", "red"),
        ("colours", "mean"),
        ("objects", "cat"),
        ("objects", "dog"),
        ("objects", "mean"),
        ("all", "mean"),
    ]
    assert rows[3].values == pytest.approx((0.9, 0.9, 0.9, 0.3, 0.6))
    assert rows[4].values[-1] == pytest.approx(0.8)
    assert rows[-1].values[0] == pytest.approx((0.9 + 1 + 0.85) / 3)


def test_good_concepts_reach_the_bar_on_all_four():
    assert good_concepts(rows_of(CATALOGUE)) == ["cat", "red"]


def test_a_missing_score_counts_as_nothing():
    unscored = Concept(
        name="dog", domain="objects", edits={"vision": SiteEdit.uniform([1])}
    )
    assert rows_of(Catalogue([unscored]))[0].values == (0, 0, 0, 0, 0)


def test_tables_hold_the_figures():
    rows = rows_of(CATALOGUE)
    lines = markdown(rows).splitlines()
    assert (
        lines[5] == "| objects | dog | 90.0 | 90.0 | 90.0 | 30.0 | 60.0 | vision (2) |"
    )
    console = Console(record=True, width=120)
    console.print(table(rows, "title"))
    assert "60.0" in console.export_text()


def test_only_the_results_section_of_a_page_changes():
    page = "before\n<!-- results -->\nold\n<!-- /results -->\nafter\n"
    now = with_results(page, "new\n")
    assert now == "before\n<!-- results -->\nnew\n<!-- /results -->\nafter\n"
    assert with_results(now, "new") == now
    with pytest.raises(ConfigError):
        with_results("no section", "new")
