# SPDX-License-Identifier: Apache-2.0
"""Tables of a catalogue's scores: for a terminal, for Markdown, as data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.table import Table

from vllm_sauce.concepts import Catalogue, Concept
from vllm_sauce.errors import ConfigError
from vllm_sauce.evaluation.metrics import NAMES, harmonic_mean

COLUMNS = (*NAMES, "HM")
GOOD = 0.85
"""All four scores of a concept that is forgotten well, at least."""


@dataclass(frozen=True, slots=True)
class Row:
    """Scores of a concept, or means over a domain or over all."""

    name: str
    domain: str
    values: tuple[float, ...]
    """UAg, UAd, IRA, CRA, HM."""
    note: str = ""


def concept_row(concept: Concept) -> Row:
    """Return a concept's row; a score that is missing counts as 0."""
    values = tuple(float(concept.scores.get(name) or 0.0) for name in NAMES)
    note = " + ".join(
        f"{site} ({len(edit.latents)})" for site, edit in sorted(concept.edits.items())
    )
    return Row(concept.name, concept.domain, (*values, harmonic_mean(values)), note)


def mean_row(name: str, domain: str, rows: Sequence[Row]) -> Row:
    """Return the mean of every column; HM is the mean of the concepts' HMs."""
    columns = zip(*(row.values for row in rows), strict=True)
    means = tuple(sum(column) / len(rows) for column in columns)
    return Row(name, domain, means, f"{len(rows)} concepts")


def rows_of(catalogue: Catalogue) -> list[Row]:
    """Return concepts by domain, each followed by its mean, and the mean of all."""
    rows: list[Row] = []
    every: list[Row] = []
    for domain, names in catalogue.domains().items():
        concepts = [concept_row(catalogue[name]) for name in names]
        rows += [*concepts, mean_row("mean", domain, concepts)]
        every += concepts
    return [*rows, mean_row("mean", "all", every)]


def good_concepts(rows: Iterable[Row], least: float = GOOD) -> list[str]:
    """Return the concepts whose four scores all reach ``least``, best first."""
    good = [row for row in rows if row.name != "mean" and min(row.values[:4]) >= least]
    return [row.name for row in sorted(good, key=lambda row: -row.values[-1])]


def table(rows: Sequence[Row], title: str) -> Table:
    """Return the rows as a table for a terminal."""
    made = Table(title=title)
    made.add_column("domain")
    made.add_column("concept")
    for name in COLUMNS:
        made.add_column(f"{name} %", justify="right")
    made.add_column("site (latents)")
    for row in rows:
        cells = [f"{100 * value:.1f}" for value in row.values]
        style = "bold" if row.name == "mean" else None
        made.add_row(row.domain, row.name, *cells, row.note, style=style)
        if row.name == "mean":
            made.add_section()
    return made


def markdown(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    names = " | ".join(f"{name} %" for name in COLUMNS)
    lines = [
        f"| domain | concept | {names} | site (latents) |",
        f"|---|---|{'---:|' * len(COLUMNS)}---|",
    ]
    for row in rows:
        cells = " | ".join(f"{100 * value:.1f}" for value in row.values)
        lines.append(f"| {row.domain} | {row.name} | {cells} | {row.note} |")
    return "\n".join(lines) + "\n"


def to_json(rows: Sequence[Row]) -> list[dict[str, object]]:
    """Return the rows as data."""
    return [
        {
            "domain": row.domain,
            "concept": row.name,
            **{n: round(v, 4) for n, v in zip(COLUMNS, row.values, strict=True)},
            "note": row.note,
        }
        for row in rows
    ]


START, END = "<!-- results -->", "<!-- /results -->"


def with_results(page: str, results: str) -> str:
    """Return a Markdown page with its results section replaced.

    Raises: ConfigError if the page has no such section
    """
    if page.count(START) != 1 or page.count(END) != 1:
        raise ConfigError(f"the page needs one section from {START} to {END}")
    head, rest = page.split(START)
    return f"{head}{START}\n{results.strip()}\n{END}{rest.split(END)[1]}"
