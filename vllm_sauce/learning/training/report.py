# SPDX-License-Identifier: Apache-2.0
"""A training on the terminal: a bar while it runs, a table at its end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.progress import TimeRemainingColumn as TimeLeft
from rich.table import Table

from vllm_sauce.learning.training.sae_lens_training import StepFigures
from vllm_sauce.learning.training.train import Report

_COLUMNS = {
    "explained_variance": "explained variance",
    "l0": "L0",
    "dead_share": "dead share",
    "dead_latents": "dead latents",
    "tokens_per_s": "tokens/s",
}


@contextmanager
def shown_progress(label: str, total_steps: int, console: Console) -> Iterator[Report]:
    """Show a bar with the last batch's figures; give what is to be told of them."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeLeft(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(label, total=total_steps, figures="")

        def report(steps_done: int, figures: StepFigures) -> None:
            text = (
                f"loss {figures.loss:.3g}, EV {figures.explained_variance:.3f}, "
                f"L0 {figures.l0:.1f}, dead {figures.dead_latents}"
            )
            bar.update(task, completed=steps_done, figures=text)

        yield report


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
