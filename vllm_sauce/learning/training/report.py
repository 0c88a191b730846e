# SPDX-License-Identifier: Apache-2.0
"""Trained SAEs' figures, for a terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

_COLUMNS = {
    "explained_variance": "explained variance",
    "l0": "L0",
    "dead_share": "dead share",
    "dead_latents": "dead latents",
    "tokens_per_s": "tokens/s",
}


def figures_table(title: str, rows: list[dict[str, Any]]) -> Table:
    """Return trained SAEs' figures, one a row."""
    table = Table(title=title)
    for name in ("site", "architecture"):
        table.add_column(name)
    for name in (*_COLUMNS.values(), "loss recovered", "KL"):
        table.add_column(name, justify="right")
    for row in rows:
        fidelity = row.get("fidelity") or {}
        numbers = [row[name] for name in _COLUMNS]
        numbers += [fidelity.get("loss_recovered"), fidelity.get("kl")]
        table.add_row(row["site"], row["architecture"], *map(_text, numbers))
    return table


def _text(number: float | int | None) -> str:
    if number is None:
        return "-"
    if isinstance(number, int) or abs(number) >= 1000:
        return f"{number:,.0f}"
    return f"{number:.4g}"
