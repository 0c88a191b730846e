# SPDX-License-Identifier: Apache-2.0
"""``sauce train``: an SAE from harvested activations."""

from __future__ import annotations

from vllm_sauce.learning.training.settings import HarvestTraining


def train(request: HarvestTraining) -> None:
    """Train an SAE, measure it in its model, and save it in SAELens' layout."""
    from rich.console import Console

    from vllm_sauce.learning.training.report import figures_table, shown_progress
    from vllm_sauce.learning.training.train import train_on_harvest

    console, training = Console(), request.training
    label = f"{training.architecture} at {request.site}"
    with shown_progress(label, training.total_steps, console) as report:
        figures = train_on_harvest(request, report)
    console.print(figures_table(str(request.out), [figures]))
    if reason := figures.get("fidelity_missing"):
        console.print(f"loss recovered is not measured: {reason}")
