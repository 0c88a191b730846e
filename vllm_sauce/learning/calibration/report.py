# SPDX-License-Identifier: Apache-2.0
"""What a calibration found: a table, and each concept's frontier."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_sauce import __version__
from vllm_sauce.concepts import Catalogue
from vllm_sauce.errors import LearnError
from vllm_sauce.evaluation.metrics import NAMES
from vllm_sauce.files import write_whole
from vllm_sauce.pages import pages_of

if TYPE_CHECKING:
    from rich.table import Table

FRONTIER_FILE = "frontier.html"
TEMPLATE = Path(__file__).parent / "pages/frontier.html.j2"


def table(catalogue: Catalogue) -> Table:
    """Return the scores of each concept for a terminal."""
    from rich.table import Table

    figures = tuple(f"{name} %" for name in (*NAMES, "HM"))
    shown = Table("concept", *figures, "edit", "floor", "forgotten")
    for name, concept in catalogue.items():
        scores = [concept.scores.get(score) for score in (*NAMES, "HM")]
        sites = " + ".join(f"{s} ({len(e.latents)})" for s, e in concept.edits.items())
        kept = "kept" if concept.provenance.get("within_floor") else "not kept"
        shares = ["-" if s is None else f"{100 * s:.1f}" for s in scores]
        forgotten = "yes" if concept.forgotten else "[bold]NOT[/bold]"
        shown.add_row(name, *shares, sites, kept, forgotten)
    means = [float(c.scores["HM"] or 0.0) for c in catalogue.values()]
    if means:
        shown.add_row(
            f"mean HM of {len(means)}",
            *[""] * 4,
            f"{100 * sum(means) / len(means):.1f}",
            *[""] * 3,
        )
    return shown


def write_frontiers(folder: Path) -> Path:
    """Draw every concept's trials and frontier into one HTML file; return its path.

    Raises: LearnError if it cannot be written
    """
    entries = [
        json.loads(path.read_text()) for path in sorted(folder.glob("concept-*.json"))
    ]
    entries.sort(key=lambda entry: entry["concept"])
    environment = pages_of(TEMPLATE.parent)
    environment.filters["edit"] = _edit
    page = environment.get_template(TEMPLATE.name)
    path = folder / FRONTIER_FILE
    text = page.render(entries=entries, version=__version__)
    write_whole(path, text.encode(), LearnError)
    return path


def _edit(setting: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a trial's setting in a line a site."""
    return "\n".join(
        f"{site}: " + ", ".join(f"{name} {value}" for name, value in one.items())
        for site, one in setting.items()
    )
