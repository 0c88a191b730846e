# SPDX-License-Identifier: Apache-2.0
"""What a calibration found: a table, and each concept's frontier."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_sauce.concepts import Catalogue
from vllm_sauce.evaluation.metrics import NAMES

if TYPE_CHECKING:
    from rich.table import Table

FRONTIER_FILE = "frontier.html"


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
    """Draw every concept's trials and frontier into one HTML file; return its path."""
    import plotly.graph_objects as go

    entries = [
        json.loads(path.read_text()) for path in sorted(folder.glob("concept-*.json"))
    ]
    entries.sort(key=lambda entry: entry["concept"])
    figure = go.Figure()
    for number, entry in enumerate(entries):
        for trace in _traces(go, entry):
            trace.visible = number == 0
            figure.add_trace(trace)
    per_concept = 3
    buttons = [
        {
            "label": entry["concept"],
            "method": "update",
            "args": [
                {
                    "visible": [
                        i // per_concept == number
                        for i in range(per_concept * len(entries))
                    ]
                }
            ],
        }
        for number, entry in enumerate(entries)
    ]
    figure.update_layout(
        title="Forgetting against keeping, calibration split",
        xaxis={"title": "forgetting: harmonic mean of UAg and UAd", "range": [0, 1.02]},
        yaxis={"title": "keeping: smaller of IRA and CRA", "range": [0, 1.02]},
        updatemenus=[{"buttons": buttons, "x": 1.0, "xanchor": "right", "y": 1.12}],
        template="plotly_white",
    )
    path = folder / FRONTIER_FILE
    figure.write_html(path, include_plotlyjs=True)
    return path


def _traces(go: Any, entry: Mapping[str, Any]) -> list[Any]:
    """Return all trials on all questions, the frontier, and what was chosen."""
    whole = [t for t in entry["trials"] if t["share"] == 1.0]
    chosen = [t for t in whole if t["setting"] == entry["setting"]][:1]
    return [
        _points(go, whole, "tried", {"mode": "markers", "opacity": 0.5}),
        _points(go, entry["frontier"], "frontier", {"mode": "lines+markers"}),
        _points(
            go,
            chosen,
            "chosen",
            {"mode": "markers", "marker": {"size": 14, "symbol": "star"}},
        ),
    ]


def _points(
    go: Any, trials: list[Mapping[str, Any]], name: str, style: Mapping[str, Any]
) -> Any:
    words = [
        "<br>".join(
            f"{site}: " + ", ".join(f"{name} {value}" for name, value in one.items())
            for site, one in t["setting"].items()
        )
        for t in trials
    ]
    return go.Scatter(
        x=[t["forgetting"] for t in trials],
        y=[t["keeping"] for t in trials],
        text=words,
        name=name,
        **style,
    )
